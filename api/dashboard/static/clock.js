// Updates running durations between refreshes.
"use strict";
(() => {
  const shown = new WeakMap(); // by element: the seconds that the server rendered, and when they were seen

  const two = (number) => String(number).padStart(2, "0");

  // like `span` in api/words.py
  function span(seconds) {
    if (seconds < 60) return `${seconds} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${two(seconds % 60)} s`;
    if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${two(Math.floor((seconds % 3600) / 60))} min`;
    return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
  }

  function tick() {
    for (const clock of document.querySelectorAll("[data-clock]")) {
      const now = performance.now();
      const last = shown.get(clock);
      const from = last?.rendered === clock.dataset.clock ? last : { rendered: clock.dataset.clock, at: now };
      shown.set(clock, from);
      clock.textContent = span(Number(from.rendered) + Math.floor((now - from.at) / 1000));
    }
  }
  setInterval(tick, 1000);
})();
