// Draws each figure's data-chart, with the style sheet's colors for light and dark. A point of a chart links to the jobs
// that ended at that time.
"use strict";
(() => {
  const drawn = new Map(); // by the figure's id
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const HEIGHT = 190;
  const FEW = 24; // up to this many values are drawn as points, because a line hides a single one
  const FONT = "11px system-ui, sans-serif";
  const UNITS = [[2 * 3600, 3600, "h"], [120, 60, "min"], [0, 1, "s"]]; // minimum of the axis maximum, seconds per unit, name
  const NICE = [1, 2, 5, 10, 15, 20, 30, 60, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000];

  const zone = document.documentElement.dataset.zone;
  const formatted = (options) => {
    const format = new Intl.DateTimeFormat("en-GB", { timeZone: zone, hourCycle: "h23", ...options });
    return (seconds) => format.format(new Date(seconds * 1000));
  };
  const clock = formatted({ hour: "2-digit", minute: "2-digit" });
  const day = formatted({ day: "numeric", month: "short" });
  const iso = (seconds) => new Date(seconds * 1000).toISOString().replace(".000", "");

  const unitOf = (chart, most) => (chart.unit === "s" ? UNITS.find(([from]) => most >= from) : [0, 1, chart.unit]);
  const valueText = (chart, value) => {
    if (value == null) return "";
    const [, size, name] = unitOf(chart, value);
    return `${(value / size).toLocaleString("en", { maximumFractionDigits: 1 })} ${name}`;
  };

  function axes(one) {
    const line = { stroke: color("soft"), grid: { stroke: color("line"), width: 1 }, ticks: { stroke: color("line"), width: 1 }, font: FONT };
    const marks = (self, moments) => moments.map((moment) => (clock(moment) === "00:00" ? day(moment) : clock(moment)));
    const incrs = (self, axis, low, high) => {
      const [, size] = unitOf(one.chart, high);
      return NICE.map((nice) => nice * size);
    };
    const values = (self, splits) => {
      const [, size, name] = unitOf(one.chart, splits.at(-1));
      return splits.map((value) => `${(value / size).toLocaleString("en")}${one.chart.unit === "s" ? ` ${name}` : ""}`);
    };
    const titled = one.chart.unit === "s" ? {} : { label: one.chart.unit, labelFont: FONT, labelSize: 16 };
    return [{ ...line, space: 60, values: marks }, { ...line, ...titled, size: 50, incrs, values }];
  }

  function options(one, width) {
    const { chart } = one;
    const end = () => one.chart.times.at(-1) + one.chart.step;
    return {
      width,
      height: HEIGHT,
      cursor: { y: false, drag: { x: false, y: false } },
      legend: { markers: { dash: (self, index) => (self.series[index].dash ? "dashed" : "solid") } },
      scales: { x: { time: true, range: () => [one.chart.times[0], end()] }, y: { range: (self, low, high) => [0, Math.max(high * 1.1, 1)] } },
      axes: axes(one),
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), zone === "UTC" ? "Etc/UTC" : zone),
      series: [
        { label: zone === "UTC" ? "UTC" : "Local time", value: (self, seconds) => (seconds == null ? "" : moment(seconds)) },
        ...chart.series.map(({ label, hue, dashed, values }) => ({
          label,
          stroke: color(hue),
          width: 1.75,
          dash: dashed ? [5, 4] : undefined,
          points: { show: values.filter((value) => value != null).length <= FEW, size: 5 },
          spanGaps: false,
          value: (self, value) => valueText(one.chart, value),
        })),
      ],
    };
  }

  const moment = (seconds) => `${day(seconds)} ${clock(seconds)}`;

  function open(one, index) {
    const from = one.chart.times[index];
    location.href = `/ops/jobs/?${new URLSearchParams({ ended_since: iso(from), ended_until: iso(from + one.chart.step) })}`;
  }

  // With a pointer: a click opens the jobs. On a touch screen, the first tap shows the values, the second one opens them.
  // With keys: the plot is a slider over its points.
  function makeUsable(one, title) {
    const { over } = one.plot;
    let index = one.chart.times.length - 1;
    let tapped = null;
    function say() {
      const { chart } = one;
      const values = chart.series.map(({ label, values: all }) => (all[index] == null ? "" : `${label} ${valueText(chart, all[index])}`));
      over.setAttribute("aria-valuenow", index);
      over.setAttribute("aria-valuetext", `${moment(chart.times[index])}: ${values.filter(Boolean).join(", ") || "no data"}`);
    }
    over.tabIndex = 0;
    over.setAttribute("role", "slider");
    over.setAttribute("aria-label", `${title}: a moment, whose jobs Enter lists`);
    over.setAttribute("aria-valuemin", 0);
    over.setAttribute("aria-valuemax", index);
    say();
    over.addEventListener("click", (event) => {
      const at = one.plot.cursor.idx;
      if (at == null) return;
      if (event.pointerType === "touch" && tapped !== at) tapped = at;
      else open(one, at);
    });
    over.addEventListener("keydown", (event) => {
      const last = one.chart.times.length - 1;
      const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: last }[event.key];
      if (event.key === "Enter") open(one, index);
      if (to === undefined) return;
      event.preventDefault();
      index = Math.min(Math.max(to, 0), last);
      one.plot.setCursor({ left: one.plot.valToPos(one.chart.times[index], "x"), top: 0 });
      say();
    });
  }

  function draw(figure) {
    const text = figure.dataset.chart;
    const place = figure.querySelector(".plot");
    const before = drawn.get(figure.id);
    if (!place || (before?.text === text && before.place === place)) return;
    const chart = JSON.parse(text);
    const data = [chart.times, ...chart.series.map(({ values }) => values)];
    const labels = chart.series.map(({ label }) => label).join();
    if (before?.place === place && before.labels === labels) {
      Object.assign(before, { text, chart });
      before.plot.setData(data);
      return;
    }
    before?.plot.destroy();
    place.replaceChildren();
    const one = { place, text, labels, chart };
    one.plot = new uPlot(options(one, place.clientWidth), data, place);
    makeUsable(one, figure.dataset.title);
    drawn.set(figure.id, one);
  }

  const all = () => document.querySelectorAll("[data-chart]").forEach(draw);
  function redraw() {
    for (const { plot } of drawn.values()) plot.destroy();
    drawn.clear();
    all();
  }
  document.addEventListener("htmx:after:swap", all);
  dark.addEventListener("change", redraw);
  new ResizeObserver(() => {
    for (const { plot, place } of drawn.values()) {
      if (plot.width !== place.clientWidth && place.clientWidth) plot.setSize({ width: place.clientWidth, height: HEIGHT });
    }
  }).observe(document.getElementById("live"));
  all();
})();
