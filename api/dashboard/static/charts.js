// Draws each figure's data-chart, with the style sheet's colors for light and dark.
"use strict";
(() => {
  const drawn = new Map(); // plot by the figure's id
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const DAY = 86400; // seconds
  const FEW = 24; // up to this many values get points: a line would hide a single one

  const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 16);

  function options(chart, width) {
    const line = { stroke: color("soft"), grid: { stroke: color("line"), width: 1 }, ticks: { stroke: color("line"), width: 1 }, font: "11px system-ui, sans-serif" };
    const format = (self, value) => (value == null ? "" : `${value.toLocaleString("en")}${chart.unit && ` ${chart.unit}`}`);
    return {
      width,
      height: 190,
      cursor: { y: false },
      scales: { x: { time: true, range: () => [Date.now() / 1000 - DAY, Date.now() / 1000] }, y: { range: (self, low, high) => [0, Math.max(high * 1.1, 1)] } },
      axes: [{ ...line, space: 60, values: (self, moments) => moments.map(clock) }, { ...line, size: 44 }],
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      series: [
        { label: "UTC", value: (self, seconds) => (seconds == null ? "" : clock(seconds)) },
        ...chart.series.map(({ label, hue, dashed, values }) => ({
          label,
          stroke: color(hue),
          width: 1.75,
          dash: dashed ? [5, 4] : undefined,
          points: { show: values.filter((value) => value != null).length <= FEW, size: 5 },
          spanGaps: false,
          value: format,
        })),
      ],
    };
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
      before.plot.setData(data);
      before.text = text;
      return;
    }
    before?.plot.destroy();
    place.replaceChildren();
    const plot = new uPlot(options(chart, place.clientWidth), data, place);
    drawn.set(figure.id, { plot, place, text, labels });
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
      if (plot.width !== place.clientWidth && place.clientWidth) plot.setSize({ width: place.clientWidth, height: 190 });
    }
  }).observe(document.getElementById("live"));
  all();
})();
