"use strict";
// Adds reading off values and choosing traces. The page is complete without it, and it makes no markup out of text.

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

function readOut() {
  const charts = [...document.querySelectorAll("figure[data-chart]")].map((figure) => new Chart(figure));
  let now = null, waiting = false;
  const draw = () => {
    waiting = false;
    for (const chart of charts) if (now === null) chart.rest(); else chart.show(now);
  };
  const go = (step) => {
    now = step;
    if (!waiting) { waiting = true; requestAnimationFrame(draw); }
  };
  for (const chart of charts) {
    chart.svg.addEventListener("pointermove", (event) => go(chart.step(event.clientX)));
    chart.svg.addEventListener("pointerdown", (event) => go(chart.step(event.clientX)));
    chart.svg.addEventListener("pointerleave", () => go(null));
    chart.svg.addEventListener("blur", () => go(null));
    chart.svg.addEventListener("keydown", (event) => {
      const [first, last] = chart.data.x, far = Math.max(1, Math.round((last - first) / 20));
      const from = now === null ? last : now;
      const to = { ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from + far, PageDown: from - far, Home: first, End: last }[event.key];
      if (event.key === "Escape") go(null);
      if (to === undefined) return;
      event.preventDefault();
      go(Math.min(Math.max(to, first), last));
    });
  }
}

function fill(select, entries, kept) {
  select.replaceChildren(...entries.map(([value, name]) => new Option(name, value)));
  const values = entries.map(([value]) => value);
  select.value = values.includes(kept) ? kept : values[0];
}

function browseTraces() {
  const form = document.querySelector(".pick");
  if (!form) return;
  const { step, problem, source } = form.elements;
  const groups = [...document.querySelectorAll(".group")], rows = [...document.querySelectorAll(".traces tbody tr")];
  const steps = [...new Set(groups.map((group) => group.dataset.step))];
  const sources = [...new Set(rows.map((row) => row.dataset.source))];
  const show = () => {
    for (const group of groups) {
      group.hidden = group.dataset.step !== step.value || group.dataset.problem !== problem.value;
    }
    for (const row of rows) row.hidden = source.value !== "" && row.dataset.source !== source.value;
    for (const button of form.querySelectorAll("button")) {
      button.disabled = steps[step.selectedIndex + Number(button.value)] === undefined;
    }
  };
  const turn = () => {
    const there = groups.filter((group) => group.dataset.step === step.value);
    fill(problem, there.map((group) => [group.dataset.problem, group.dataset.name]), problem.value);
    show();
  };
  fill(step, steps.map((each) => [each, each]), steps[steps.length - 1]);
  source.append(...sources.map((each) => new Option(each, each)));
  step.addEventListener("change", turn);
  problem.addEventListener("change", show);
  source.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of form.querySelectorAll("button")) {
    button.addEventListener("click", () => { step.selectedIndex += Number(button.value); turn(); });
  }
  form.hidden = false;
  turn();
}

for (const hint of document.querySelectorAll(".scripted")) hint.hidden = false;
readOut();
browseTraces();
