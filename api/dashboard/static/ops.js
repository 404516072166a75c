// Refreshes a page's content when an event arrives. The server renders all content.
"use strict";
(() => {
  const EVENTS = "/ops/events/";
  const DELAY_MS = 250; // delay after an event, because others often follow
  const INTERVAL_MS = 1000; // minimum interval between refreshes; a page can set another with data-refresh-ms
  const IDLE_MS = 10_000; // interval between refreshes for data without events (heartbeats, storage)
  const RETRY_MS = 3000; // delay after the stream or a page was refused
  const SILENT_MS = 5000; // without a heartbeat, which the server sends every 2 seconds
  const LISTEN_MS = 10_000; // interval between attempts to open a silent stream
  const WATCH_MS = 1000; // interval between checks of the connection
  const STATES = { live: "Live", connecting: "Connecting", lost: "Reconnecting" };
  const PAGE_MS = 35_000; // limit for a page to load; the server's limit is 30 seconds

  const live = document.getElementById("live");
  const badge = document.getElementById("connection");
  const ask = document.getElementById("ask");
  const notice = document.getElementById("notice");
  const trouble = document.getElementById("trouble");

  // --- all pages, including the login ---

  const zone = document.documentElement.dataset.zone;
  const local = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const zoneSwitch = document.getElementById("zone");

  function showZone(name) {
    document.cookie = `ops-zone=${name}; Path=/ops/; SameSite=Strict; Max-Age=31536000`;
    if (document.cookie.includes(`ops-zone=${name}`)) location.reload();
  }
  const switchZone = () => showZone(zone === "UTC" ? local : "UTC");
  if (zoneSwitch && local && local !== "UTC") {
    zoneSwitch.hidden = false;
    zoneSwitch.addEventListener("click", switchZone);
    if (zone !== "UTC" && zone !== local) showZone(local); // the operator has traveled
  }

  // omit empty fields of a filter from the URL
  document.addEventListener("formdata", (event) => {
    if (event.target.method !== "get") return;
    for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
    // with the zone, so that the URL means the same for others
    for (const { name, value } of event.target.querySelectorAll("[type=datetime-local]")) {
      if (value) event.formData.set(name, zone === "UTC" ? `${value}:00Z` : new Date(value).toISOString().replace(".000", ""));
    }
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches(".filter select")) event.target.form.requestSubmit();
  });
  // the page of a temporary error: load the requested page once it is available
  const comesBack = document.querySelector("[data-comes-back]");
  async function lookAgain() {
    try {
      const init = { headers: { "X-Live": "idle" }, redirect: "manual", signal: AbortSignal.timeout(PAGE_MS) };
      if (!document.hidden && (await fetch(location.href, init)).status !== 503) return location.reload();
    } catch {
      // no response: try again
    }
    setTimeout(lookAgain, RETRY_MS);
  }
  if (comesBack) {
    comesBack.hidden = false;
    setTimeout(lookAgain, RETRY_MS);
  }
  if (!badge) return;

  // --- refresh ---

  let source, waiting, again;
  let last = 0; // start of the latest refresh
  let asked = null; // start of the refresh without a response so far
  let shown = performance.timeOrigin; // when the data on the page was read, or a little earlier
  let sign = Date.now(); // last heartbeat: the server and Redis responded
  let listened = 0; // when the stream was last requested
  let isOpen = false; // the stream
  let hasFailed = false; // the latest refresh
  let touched = true; // whether there was input since the last refresh

  function refresh() {
    clearTimeout(waiting);
    waiting = undefined;
    last = Date.now();
    if (!document.hidden && live.hasAttribute("hx-get")) htmx.trigger(live, "refetch");
  }

  const interval = () => Number(live.querySelector("[data-refresh-ms]")?.dataset.refreshMs ?? INTERVAL_MS);

  function refreshSoon() {
    waiting ??= setTimeout(refresh, Math.max(DELAY_MS, last + interval() - Date.now()));
  }

  const isLate = (moment) => Date.now() - moment > SILENT_MS;

  function rough(milliseconds) {
    const seconds = Math.max(0, Math.floor(milliseconds / 1000));
    for (const [unit, name] of [[86_400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= unit) return `${Math.floor(seconds / unit)} ${name}`;
    }
    return `${seconds} s`;
  }

  function setConnection(state) {
    if (badge.dataset.state !== state) {
      badge.dataset.state = state;
      badge.querySelector("#connection-state").textContent = STATES[state];
    }
    // outside of the live region: a screen reader announces the state, not each second
    badge.querySelector("#connection-age").textContent = state === "lost" ? `as of ${rough(Date.now() - shown)} ago` : "";
  }

  function showConnection() {
    const isLive = isOpen && !hasFailed && !isLate(sign) && !(asked && isLate(asked));
    const isNew = badge.dataset.state === "connecting" && !isLate(listened);
    setConnection(isLive ? "live" : isNew ? "connecting" : "lost");
  }

  function listen() {
    clearTimeout(again);
    source?.close();
    isOpen = false;
    listened = Date.now();
    source = new EventSource(EVENTS);
    source.addEventListener("open", () => {
      isOpen = true;
      sign = Date.now();
      htmx.trigger(live, "htmx:abort"); // a refresh may be waiting on a dead connection
      refresh(); // for events that the stream missed
      showConnection();
    });
    source.addEventListener("alive", () => {
      sign = Date.now();
      showConnection();
    });
    source.addEventListener("job", () => {
      sign = Date.now();
      refreshSoon();
    });
    source.addEventListener("error", () => {
      isOpen = false;
      showConnection();
      if (source?.readyState === EventSource.CLOSED) reconnect(); // otherwise the browser reconnects by itself
    });
  }

  function reconnect() {
    clearTimeout(again);
    again = setTimeout(() => {
      refresh(); // redirects to the login if the session has ended
      listen();
    }, RETRY_MS);
  }

  function disconnect() {
    clearTimeout(again);
    source?.close();
    source = undefined;
  }

  function watch() {
    if (document.hidden) return;
    showConnection();
    if (hasFailed && !asked && Date.now() - last > RETRY_MS) refresh();
    // a dead connection may stay open for minutes
    if (isLate(sign) && Date.now() - listened > LISTEN_MS) listen();
  }

  // A hidden page closes its stream: browsers allow few connections to one host.
  function onVisibility() {
    if (document.hidden) return disconnect();
    if (source) return;
    setConnection("connecting");
    listen();
  }
  document.addEventListener("visibilitychange", onVisibility);
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", (event) => event.persisted && onVisibility());
  setInterval(() => document.hidden || Date.now() - last < IDLE_MS / 2 || refresh(), IDLE_MS);
  setInterval(watch, WATCH_MS);
  for (const kind of ["pointerdown", "keydown", "wheel", "touchstart"]) {
    document.addEventListener(kind, () => (touched = true), { passive: true });
  }

  document.addEventListener("htmx:config:request", (event) => {
    const { request, sourceElement } = event.detail.ctx;
    request.headers["X-CSRF-Token"] = document.querySelector("meta[name=csrf-token]").content;
    if (sourceElement !== live) return;
    request.headers["X-Live"] = touched ? "used" : "idle";
    touched = false;
  });
  document.addEventListener("htmx:before:request", (event) => {
    if (event.detail.ctx.sourceElement === live) asked = Date.now();
  });
  document.addEventListener("htmx:finally:request", (event) => {
    if (event.detail.ctx.sourceElement === live) asked = null;
  });
  document.addEventListener("htmx:after:swap", (event) => {
    const { sourceElement, response } = event.detail.ctx;
    if (sourceElement !== live) return;
    hasFailed = response?.status !== 200;
    if (!hasFailed) {
      shown = asked;
      trouble.replaceChildren();
    }
    showConnection();
    updateSelection();
  });
  // keep open details open
  htmx.registerExtension("ops", {
    htmx_before_morph_attr: (element, { attrName }) =>
      !(attrName === "open" && element.matches("details, dialog")),
  });

  // --- dialogs ---

  document.addEventListener("htmx:after:swap", (event) => {
    const { ctx } = event.detail;
    const target = ctx.target;
    if (target === ask && ctx.response.status === 200) {
      if (!ask.open) ask.showModal();
      ask.querySelector("[autofocus]")?.focus();
      ask.scrollTop = 0; // the focus may be below a long list; the question comes first
    }
    // if the form is not valid, it stays open with what was typed
    if (ctx.request.method === "POST" && ask.contains(ctx.sourceElement) && ctx.response.status !== 400) {
      ask.close();
      notice.scrollIntoView({ block: "nearest" });
      refresh();
    }
  });
  document.addEventListener("htmx:error", (event) => {
    const { ctx } = event.detail;
    if (ctx?.sourceElement === live) {
      hasFailed = true; // the stream may not notice a dead connection
      reconnect();
      showConnection();
    }
    if (ctx?.request?.method !== "POST") return;
    const text = "No response. Check whether the action took effect before you try again.";
    const place = ask.querySelector(".ask-trouble");
    if (place) place.textContent = text;
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]") && ask.open) {
      event.preventDefault();
      ask.close();
    }
    if (event.target.closest("[data-dismiss]")) event.target.closest(".notice").remove();
  });
  ask.addEventListener("close", () => ask.replaceChildren());

  // --- selection ---

  function updateSelection() {
    const all = [...document.querySelectorAll("[data-pick]")];
    const selected = all.filter((box) => box.checked);
    const whole = document.querySelector("[data-pick-all]");
    if (whole) {
      whole.checked = selected.length > 0 && selected.length === all.length;
      whole.indeterminate = selected.length > 0 && selected.length < all.length;
    }
    for (const place of document.querySelectorAll("[data-picked]")) place.textContent = String(selected.length);
    for (const element of document.querySelectorAll("[data-with-picked]")) element.hidden = selected.length === 0;
  }
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-pick-all]")) {
      for (const box of document.querySelectorAll("[data-pick]")) box.checked = event.target.checked;
    }
    updateSelection();
  });

  // --- keys ---

  let going = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (document.querySelector("dialog[open]")) return;
    const page = going && document.querySelector(`nav [data-key="${CSS.escape(event.key)}"]`);
    going = event.key === "g";
    if (page) page.click();
    else if (event.key === "/" || event.key === "f") {
      const filter = event.key === "/" && document.querySelector("[data-search]");
      const field = filter || document.querySelector("[data-find]");
      if (!field) return;
      event.preventDefault();
      field.focus();
      field.select();
    } else if (event.key === "u") zoneSwitch.click();
    else if (event.key === "?") document.getElementById("keys").showModal();
    // Space activates links that look like buttons
    else if (event.key === " " && event.target.matches("a[role=button]")) {
      event.preventDefault();
      event.target.click();
    }
  });

  updateSelection();
  last = Date.now();
  if (!document.hidden) listen();
})();
