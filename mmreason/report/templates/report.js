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
  const chosenOf = { outcome: "all", modality: "all" };
  for (const key of Object.keys(chosenOf)) {
    const filters = [...document.querySelectorAll(`button[data-${key}]`)];
    for (const filter of filters) {
      filter.addEventListener("click", () => {
        chosenOf[key] = filter.dataset[key];
        for (const other of filters) other.setAttribute("aria-pressed", String(other === filter));
        for (const card of document.querySelectorAll(".answer[data-outcome]")) {
          const kept = Object.entries(chosenOf).every(([k, v]) => v === "all" || card.dataset[k] === v);
          card.style.display = kept ? "" : "none";
        }
      });
    }
  }

  // Video and sound: one button, one bar with the evidence on it, and boxes that appear at their moment.
  const NEAR = 0.35; // seconds
  for (const timed of document.querySelectorAll(".timed")) {
    const medium = timed.querySelector("video, audio");
    if (!medium) continue;
    const play = timed.querySelector(".play");
    const bar = timed.querySelector(".bar");
    const head = timed.querySelector(".head");
    const clock = timed.querySelector(".clock");
    const length = Number(bar.getAttribute("aria-valuemax"));
    medium.controls = false;
    if (medium.tagName === "AUDIO") medium.hidden = true;
    play.hidden = false;
    const draw = () => {
      const now = medium.currentTime;
      head.style.left = Math.min(100, (100 * now) / length) + "%";
      clock.textContent = now.toFixed(1) + " / " + length.toFixed(1) + " s";
      bar.setAttribute("aria-valuenow", now.toFixed(2));
      for (const part of timed.querySelectorAll("[data-t]")) {
        part.toggleAttribute("data-away", Math.abs(Number(part.dataset.t) - now) > NEAR);
      }
      if (!medium.paused) requestAnimationFrame(draw);
    };
    const start = () => {
      for (const other of document.querySelectorAll("video, audio")) if (other !== medium) other.pause();
      medium.play();
    };
    const seek = (seconds) => {
      const to = Math.max(0, Math.min(seconds, length - 0.01));
      if (medium.readyState) medium.currentTime = to;
      else {
        medium.addEventListener("loadedmetadata", () => { medium.currentTime = to; }, { once: true });
        medium.load();
      }
    };
    medium.preload = "metadata";
    medium.addEventListener("play", () => { play.textContent = "\u275A\u275A"; play.setAttribute("aria-label", "pause"); draw(); });
    medium.addEventListener("pause", () => { play.textContent = "\u25B6"; play.setAttribute("aria-label", "play"); draw(); });
    medium.addEventListener("seeked", draw);
    play.addEventListener("click", () => { if (medium.paused) start(); else medium.pause(); });
    for (const mark of timed.querySelectorAll("[data-seek]")) {
      mark.addEventListener("click", () => { seek(Number(mark.dataset.seek)); if (medium.tagName === "AUDIO") start(); });
    }
    const point = (event) => {
      const box = bar.getBoundingClientRect();
      seek((length * (event.clientX - box.left)) / box.width);
    };
    bar.addEventListener("pointerdown", (event) => { bar.setPointerCapture(event.pointerId); point(event); });
    bar.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
    bar.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.25, ArrowRight: 0.25 }[event.key];
      if (!step) return;
      event.preventDefault();
      seek(medium.currentTime + step);
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
