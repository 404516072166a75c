// Keeps a page fresh: one stream of events tells it to ask for its inside again. What it shows always comes from the server.
"use strict";
(() => {
  const EVENTS = "/ops/events/";
  const SOON_MS = 250; // after an event: others come with it
  const APART_MS = 1000; // from one look to the next, where the page says nothing else
  const SLOW_MS = 10_000; // what sends no event (heartbeats, storage) is looked at so often
  const AGAIN_MS = 3000; // after the stream was refused

  const live = document.getElementById("live");
  const badge = document.getElementById("connection");
  const ask = document.getElementById("ask");
  const notice = document.getElementById("notice");
  const trouble = document.getElementById("trouble");

  // --- the same for all pages, the login's too ---

  // what a filter leaves empty stays out of the address, so that it can be shared
  document.addEventListener("formdata", (event) => {
    if (event.target.method !== "get") return;
    for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches(".filter select")) event.target.form.requestSubmit();
  });
  if (!badge) return;

  // --- fresh ---

  let source, waiting, again;
  let last = 0;
  let touched = true; // a person has done something since the page looked last

  function look() {
    clearTimeout(waiting);
    waiting = undefined;
    last = Date.now();
    if (!document.hidden && live.hasAttribute("hx-get")) htmx.trigger(live, "refetch");
  }

  const apart = () => Number(live.querySelector("[data-apart-ms]")?.dataset.apartMs ?? APART_MS);

  function lookSoon() {
    waiting ??= setTimeout(look, Math.max(SOON_MS, last + apart() - Date.now()));
  }

  function tell(state, words) {
    if (badge.dataset.state === state) return;
    badge.dataset.state = state;
    badge.textContent = words;
  }

  function listen() {
    clearTimeout(again);
    source?.close();
    source = new EventSource(EVENTS);
    source.addEventListener("open", () => {
      tell("live", "Live");
      look(); // at what happened before there was a stream, or while there was none
    });
    source.addEventListener("job", () => lookSoon());
    source.addEventListener("error", () => {
      lost();
      if (source?.readyState === EventSource.CLOSED) comeAgain(); // else it does so by itself
    });
  }

  function lost() {
    tell("lost", "Reconnecting …");
  }

  function comeAgain() {
    clearTimeout(again);
    again = setTimeout(() => {
      look(); // leads to the login where the session has ended
      listen();
    }, AGAIN_MS);
  }

  function leave() {
    clearTimeout(again);
    source?.close();
    source = undefined;
  }

  // A page that nobody sees holds no connection: browsers have few to one host.
  function seen() {
    if (document.hidden) leave();
    else if (!source) listen();
  }
  document.addEventListener("visibilitychange", seen);
  window.addEventListener("pagehide", leave);
  window.addEventListener("pageshow", (event) => event.persisted && seen());
  setInterval(() => document.hidden || Date.now() - last < SLOW_MS / 2 || look(), SLOW_MS);
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
  document.addEventListener("htmx:after:swap", (event) => {
    const { sourceElement, response } = event.detail.ctx;
    if (sourceElement === live && response?.status === 200) trouble.replaceChildren();
    if (sourceElement === live) picked();
  });
  // what a person has opened or ticked stays as it is
  htmx.registerExtension("ops", {
    htmx_before_morph_attr: (element, { attrName }) =>
      !(attrName === "open" && element.matches("details, dialog")),
  });

  // --- questions ---

  document.addEventListener("htmx:after:swap", (event) => {
    const { ctx } = event.detail;
    const target = ctx.target;
    if (target === ask && ctx.response.status === 200 && !ask.open) {
      ask.showModal();
      ask.querySelector("[autofocus]")?.focus();
    }
    if (ctx.request.method === "POST" && ask.contains(ctx.sourceElement)) {
      ask.close();
      notice.scrollIntoView({ block: "nearest" });
      look();
    }
  });
  document.addEventListener("htmx:error", (event) => {
    const { ctx } = event.detail;
    if (ctx?.sourceElement === live) {
      lost(); // also where the stream has not heard of it: a connection may be dead and say nothing
      comeAgain();
    }
    if (ctx?.request?.method !== "POST") return;
    const words = "There was no answer. Look whether it was done before you try again.";
    const place = ask.querySelector(".ask-trouble");
    if (place) place.textContent = words;
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]") && ask.open) {
      event.preventDefault();
      ask.close();
    }
    if (event.target.closest("[data-dismiss]")) event.target.closest(".notice").remove();
  });
  ask.addEventListener("close", () => ask.replaceChildren());

  // --- ticks ---

  function picked() {
    const all = [...document.querySelectorAll("[data-pick]")];
    const ticked = all.filter((box) => box.checked);
    const whole = document.querySelector("[data-pick-all]");
    if (whole) {
      whole.checked = ticked.length > 0 && ticked.length === all.length;
      whole.indeterminate = ticked.length > 0 && ticked.length < all.length;
    }
    for (const place of document.querySelectorAll("[data-picked]")) place.textContent = String(ticked.length);
    for (const part of document.querySelectorAll("[data-with-picked]")) part.hidden = ticked.length === 0;
  }
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-pick-all]")) {
      for (const box of document.querySelectorAll("[data-pick]")) box.checked = event.target.checked;
    }
    picked();
  });

  // --- keys ---

  let going = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (document.querySelector("dialog[open]")) return;
    const page = going && document.querySelector(`nav [data-key="${CSS.escape(event.key)}"]`);
    going = event.key === "g";
    if (page) page.click();
    else if (event.key === "/") {
      const field = document.querySelector("[data-search]");
      if (!field) return;
      event.preventDefault();
      field.focus();
      field.select();
    } else if (event.key === "?") document.getElementById("keys").showModal();
    // what looks like a button is pressed like one
    else if (event.key === " " && event.target.matches("a[role=button]")) {
      event.preventDefault();
      event.target.click();
    }
  });

  picked();
  last = Date.now();
  if (!document.hidden) listen();
})();
