"use strict";
// Reads values off charts, all of them at the same step. Charts are complete without it, and it makes no markup out of text.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// The place of the last entry in a rising list that is not above the limit, or 0.
function lastUpTo(list, limit) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] <= limit) low = middle + 1; else high = middle;
  }
  return Math.max(low - 1, 0);
}

class Chart {
  constructor(figure) {
    this.data = JSON.parse(figure.dataset.chart);
    this.svg = figure.querySelector(":scope > svg");
    this.cursor = this.svg.querySelector(".cursor");
    this.at = figure.querySelector(".legend .at");
    this.keys = [...figure.querySelectorAll(".legend li:not(.at):not(.level)")];
    this.last = this.keys.map((key) => key.querySelector("b").textContent);
    this.svg.tabIndex = 0;
  }

  x(step) {
    const [first, last] = this.data.x, [left, right] = this.data.box;
    return left + (right - left) * (last > first ? (step - first) / (last - first) : 0.5);
  }

  step(clientX) {
    const box = this.svg.getBoundingClientRect(), [left, right] = this.data.box, [first, last] = this.data.x;
    const inside = ((clientX - box.left) / box.width * this.svg.viewBox.baseVal.width - left) / (right - left);
    return Math.round(first + Math.min(Math.max(inside, 0), 1) * (last - first));
  }

  show(step) {
    const [, , top, floor] = this.data.box;
    const marks = [element("line", { x1: this.x(step), x2: this.x(step), y1: top, y2: floor })];
    this.at.textContent = "step " + step;
    this.data.series.forEach((series, place) => {
      const key = this.keys[place], value = key.querySelector("b");
      if (!series.s.length || series.s[0] > step) { value.textContent = "–"; key.className = "past"; return; }
      const point = lastUpTo(series.s, step), there = series.s[point];
      value.textContent = series.v[point];
      key.className = there < step && series.s.length < (this.data.x[1] - this.data.x[0]) / 2 ? "past" : "";
      if (series.y.length) {
        marks.push(element("circle", { class: series.c, cx: this.x(there), cy: series.y[point], r: 3.4 }));
      }
    });
    this.cursor.replaceChildren(...marks);
  }

  rest() {
    this.cursor.replaceChildren();
    this.at.textContent = "last";
    this.keys.forEach((key, place) => { key.className = ""; key.querySelector("b").textContent = this.last[place]; });
  }
}

// All charts that are read at one step. Charts may be taken in later, in the place of others.
class Readout {
  constructor() {
    this.charts = [];
    this.now = null;
    this.waiting = false;
  }

  take(figures) {
    this.charts = this.charts.filter((chart) => chart.svg.isConnected);
    const fresh = figures.map((figure) => new Chart(figure));
    this.charts.push(...fresh);
    for (const chart of fresh) this.listen(chart);
    if (this.now !== null) this.go(this.now);
  }

  draw() {
    this.waiting = false;
    for (const chart of this.charts) if (this.now === null) chart.rest(); else chart.show(this.now);
  }

  go(step) {
    this.now = step;
    if (!this.waiting) { this.waiting = true; requestAnimationFrame(() => this.draw()); }
  }

  listen(chart) {
    chart.svg.addEventListener("pointermove", (event) => this.go(chart.step(event.clientX)));
    chart.svg.addEventListener("pointerdown", (event) => this.go(chart.step(event.clientX)));
    chart.svg.addEventListener("pointerleave", () => this.go(null));
    chart.svg.addEventListener("blur", () => this.go(null));
    chart.svg.addEventListener("keydown", (event) => {
      const [first, last] = chart.data.x, far = Math.max(1, Math.round((last - first) / 20));
      const from = this.now === null ? last : this.now;
      const to = { ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from + far, PageDown: from - far, Home: first, End: last }[event.key];
      if (event.key === "Escape") this.go(null);
      if (to === undefined) return;
      event.preventDefault();
      this.go(Math.min(Math.max(to, first), last));
    });
  }
}

const readout = new Readout();
for (const hint of document.querySelectorAll(".scripted")) hint.hidden = false;
readout.take([...document.querySelectorAll("figure[data-chart]")]);
