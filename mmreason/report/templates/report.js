"use strict";
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  let chosen = new URLSearchParams(location.hash.slice(1)).get("theme");
  const paint = () => {
    if (chosen) root.dataset.theme = chosen;
    const isDark = chosen ? chosen === "dark" : dark.matches;
    button.textContent = isDark ? "Light" : "Dark";
    return isDark;
  };
  button.addEventListener("click", () => {
    chosen = paint() ? "light" : "dark";
    paint();
  });
  dark.addEventListener("change", paint);
  paint();

  const boxes = document.getElementById("boxes");
  if (boxes) {
    boxes.addEventListener("click", () => {
      const hidden = document.body.classList.toggle("no-boxes");
      boxes.setAttribute("aria-pressed", String(!hidden));
    });
  }
  const filters = [...document.querySelectorAll("button[data-outcome]")];
  for (const filter of filters) {
    filter.addEventListener("click", () => {
      for (const other of filters) other.setAttribute("aria-pressed", String(other === filter));
      for (const card of document.querySelectorAll(".answer[data-outcome]")) {
        card.hidden = filter.dataset.outcome !== "all" && card.dataset.outcome !== filter.dataset.outcome;
        card.style.display = card.hidden ? "none" : "";
      }
    });
  }

  // The read-out under the pointer: the nearest point of every line of a chart.
  const tip = document.getElementById("tip");
  const say = (value, percent) => {
    if (percent) return (100 * value).toFixed(1) + "%";
    return Math.abs(value) >= 1e4 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
  };
  for (const svg of document.querySelectorAll("svg.chart")) {
    const data = JSON.parse(svg.dataset.chart);
    const cursor = svg.querySelector(".cursor");
    const move = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const nearest = data.series.map((s) =>
        s.points.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best)));
      if (!nearest.length) return;
      const at = nearest.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));
      cursor.setAttribute("x1", at[0]);
      cursor.setAttribute("x2", at[0]);
      const head = document.createElement("div");
      head.textContent = data.labels.length ? data.labels[at[2]] : "step " + say(at[2], false);
      tip.replaceChildren(head);
      data.series.forEach((s, i) => {
        const line = document.createElement("div");
        const swatch = document.createElement("span");
        swatch.className = "swatch " + s.colour;
        const value = document.createElement("b");
        value.textContent = say(nearest[i][3], data.percent);
        line.append(swatch, s.name, value);
        tip.append(line);
      });
      tip.style.display = "block";
      const left = event.clientX + window.scrollX + 14;
      const room = document.documentElement.clientWidth + window.scrollX - tip.offsetWidth - 8;
      tip.style.left = Math.max(4, Math.min(left, room)) + "px";
      tip.style.top = event.clientY + window.scrollY + 16 + "px";
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", () => {
      tip.style.display = "none";
      cursor.setAttribute("x1", -9);
      cursor.setAttribute("x2", -9);
    });
  }
})();
