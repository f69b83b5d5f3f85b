
// Keeps the page of a run up to date and searches its traces. Whatever comes as JSON is put in as text; drawings come in a
// page that the browser has parsed without running anything.
const EVERY_MS = 2000, READING_MS = 150, TYPING_MS = 250, SHARE_OF_TIME = 10;
const PARTS = ["result", "curves", "traces", "warnings", "numbers", "config"];
const at = (id) => document.getElementById(id);
const form = at("search");

function make(name, attributes, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

async function ask(name, query) {
  const answer = await fetch(name + "?" + query, { cache: "no-store" });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

// ---- everything but the traces: taken from the page as the server draws it now

function drawnNow() {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("GET", location.pathname);
    request.responseType = "document";
    request.onload = () => request.status === 200 && request.responseXML ? done(request.responseXML) : failed(new Error("no page"));
    request.onerror = () => failed(new Error("no answer"));
    request.send();
  });
}

function differ(old, fresh) { return old.outerHTML !== fresh.outerHTML; }

function swapFigures(old, fresh) {
  const before = [...old.querySelectorAll("figure")], after = [...fresh.querySelectorAll("figure")];
  const title = (figure) => figure.querySelector("h3").textContent;
  if (before.length !== after.length || before.some((figure, place) => title(figure) !== title(after[place]))) return false;
  const now = readout.now, taken = [];
  before.forEach((figure, place) => {
    const focused = figure.contains(document.activeElement);
    figure.replaceWith(after[place]);
    taken.push(after[place]);
    if (focused) { readout.take([after[place]]); taken.pop(); after[place].querySelector(":scope > svg").focus({ preventScroll: true }); }
  });
  readout.take(taken.filter((figure) => figure.dataset.chart));
  readout.go(now);
  return true;
}

function swap(id, page) {
  const old = at(id), fresh = page.getElementById(id);
  if (!fresh) { if (old) old.remove(); return; }
  if (!old) {
    const next = PARTS.slice(PARTS.indexOf(id) + 1).map(at).find((part) => part);
    if (next) next.before(fresh); else document.querySelector("main").append(fresh);
  } else if (id === "curves" && swapFigures(old, fresh)) {
    return;
  } else if (differ(old, fresh)) {
    const folded = old.querySelector("details"), open = folded && folded.open;
    old.replaceWith(fresh);
    if (open) fresh.querySelector("details").open = true;
  }
  for (const hint of fresh.querySelectorAll(".scripted")) hint.hidden = false;
  readout.take([...fresh.querySelectorAll("figure[data-chart]")].filter((figure) => figure.isConnected));
}

function show(page) {
  const header = page.querySelector("header");
  if (differ(document.querySelector("header"), header)) document.querySelector("header").replaceWith(header);
  for (const id of PARTS) if (id !== "traces") swap(id, page);
  at("now").dataset.version = page.getElementById("now").dataset.version;
}

// ---- traces

const search = { page: 1, upto: 0, version: "", total: 0, latest: 0, behind: false };

function wanted() {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (value.trim() && !(name === "order" && value === "newest")) query.set(name, value.trim());
  }
  return query;
}

async function find(page, upto) {
  const mine = ++search.latest, query = wanted();
  query.set("page", page);
  if (upto) query.set("upto", upto);
  let answer;
  try { answer = await ask("traces", query); } catch (error) { if (mine === search.latest) at("count").textContent = error.message; return; }
  if (mine !== search.latest) return;
  if (page > 1 && answer.parts.length === 0) return find(1, upto);
  Object.assign(search, { page: answer.page, upto: answer.upto, version: answer.traces, total: answer.total });
  at("count").textContent = tally(answer);
  at("fresh").hidden = true;
  at("found").replaceChildren(...answer.parts.map(partOf));
  at("turn").hidden = answer.pages < 2;
  at("turn").querySelector("span").textContent = `page ${answer.page} of ${answer.pages.toLocaleString("en")}`;
  const [back, further] = at("turn").querySelectorAll("button");
  back.disabled = answer.page <= 1;
  further.disabled = answer.page >= answer.pages;
  at("only").hidden = !form.elements.only.value;
  highlight(form.elements.text.value.trim());
}

function tally({ total, parts }) {
  const filtered = [...wanted().keys()].some((name) => name !== "order"), many = total.toLocaleString("en");
  if (total === 0) return filtered ? "No trace matches." : "No traces are recorded yet.";
  const unit = parts.some((part) => part.sides.length > 1) ? ["pair of groups", "pairs of groups"] : ["trace", "traces"];
  return `${many} ${unit[total === 1 ? 0 : 1]}${filtered ? (total === 1 ? " matches" : " match") : ""}.`;
}

function partOf(part) {
  const { problem, sides } = part, two = sides.length > 1;
  const head = make("h3", {}, make("span", { class: "question" }, problem.question));
  if (!two) head.prepend(make("span", { class: "at" }, sides[0].at), " ");
  if (!form.elements.only.value) {
    const only = make("button", { type: "button", class: "quiet" }, "only this problem");
    only.addEventListener("click", () => { form.elements.only.value = part.only; changed(); });
    head.append(" ", only);
  }
  const turns = problem.turns.map((turn) => make("p", { class: "answer" }, `Before it, ${turn.role}: `, make("span", { class: "question" }, turn.text)));
  return make("section", { class: "group" }, head, ...turns, make("div", { class: two ? "sides" : "side" }, ...sides.map((side) => sideOf(side, two))));
}

function sideOf(side, two) {
  const made = make("div", {});
  if (two) made.append(make("h4", {}, side.at));
  if (side.problem) {
    const { id, answer, hint } = side.problem, told = make("p", { class: "answer" }, "Answer ", make("code", {}, answer));
    if (hint !== null) told.append(" · shown to the posterior: ", make("code", {}, hint));
    told.append(" · id ", make("code", {}, id));
    made.append(told);
  }
  if (side.rows.length) {
    const table = make("table", { class: two ? "traces slim" : "traces", role: "table" });
    const names = ["Source", "Reward", "Advantage", "KL", "End", "Verdict", "Trace"].map((name) => make("th", { scope: "col", role: "columnheader" }, name));
    table.append(make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...names)));
    table.append(make("tbody", { role: "rowgroup" }, ...side.rows.map(rowOf)));
    made.append(table);
  }
  if (side.note) made.append(make("p", { class: "remark" }, side.note));
  return made;
}

function rowOf(row) {
  const cell = (kind, ...inside) => make("td", { role: "cell", class: kind }, ...inside);
  const named = (name) => make("i", {}, name);
  const colour = row.source === "prior" || row.source === "posterior" ? `s-${row.source}` : "s-0";
  const source = cell("source", make("span", { class: `source ${colour}` }, row.source));
  if (row.place) source.append(make("p", { class: "remark" }, row.place));
  const reward = cell("number", named("reward"), " ", row.reward);
  for (const [name, value] of row.rewards) reward.append(make("br", {}), named(name), " ", value);
  const text = cell("text", row.tokens.length ? make("pre", {}, ...row.tokens.map(tokenOf)) : row.text ? make("pre", {}, row.text) : make("em", {}, "empty"));
  if (row.more) text.append(make("p", { class: "remark" }, row.more));
  return make("tr", { role: "row" }, source, reward,
    cell("number advantage", named("advantage"), " ", make("span", {}, row.advantage), " ", barOf(row.share)),
    cell("number", named("KL"), " ", row.kl), cell(row.broken ? "finish bad" : "finish", row.end),
    cell("verdict", make("span", { class: row.judged }, row.verdict)), text);
}

function tokenOf([text, tint, told]) {
  if (!told) return text;
  const token = make("span", { title: told }, text);
  if (tint) token.className = tint;
  return token;
}

function barOf(share) {
  if (share === null) return "";
  const size = 30 * Math.abs(share), bar = element("svg", { class: "bar", viewBox: "0 0 64 10", "aria-hidden": "true" });
  bar.append(element("rect", { class: share < 0 ? "down" : "up", x: share < 0 ? 32 - size : 32, y: 1, width: size, height: 8 }), element("path", { d: "M32 0V10" }));
  return bar;
}

// Marks what was searched for, across tokens, without changing them; a long trace is scrolled to the first place.
function highlight(text) {
  if (!window.Highlight || !CSS.highlights) return;
  const marks = [], sought = text.toLowerCase();
  for (const pre of sought ? document.querySelectorAll("#found pre") : []) {
    const whole = pre.textContent.toLowerCase(), first = whole.indexOf(sought);
    if (whole.length !== pre.textContent.length) continue;
    for (let place = first; place >= 0; place = whole.indexOf(sought, place + sought.length)) marks.push(rangeIn(pre, place, place + sought.length));
    if (first >= 0) pre.scrollTop = Math.max(0, marks[marks.length - 1].getBoundingClientRect().top - pre.getBoundingClientRect().top - 40);
  }
  CSS.highlights.set("sought", new Highlight(...marks));
}

function rangeIn(node, start, stop) {
  const range = document.createRange(), walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  let before = 0, begun = false;
  while (walker.nextNode()) {
    const text = walker.currentNode, after = before + text.length;
    if (!begun && start < after) { range.setStart(text, start - before); begun = true; }
    if (stop <= after) { range.setEnd(text, stop - before); break; }
    before = after;
  }
  return range;
}

function changed() {
  history.replaceState(null, "", "#" + wanted());
  find(1, null);
}

function remembered() {
  const given = location.hash.includes("=") ? new URLSearchParams(location.hash.slice(1)) : [];
  for (const [name, value] of given) {
    const field = form.elements[name];
    if (!field) continue;
    if (name === "source") field.append(new Option(value, value));
    field.value = value;
  }
}

// ---- the clock

const clock = { timer: 0, busy: false, drawAfter: 0 };

async function look() {
  const query = wanted();
  query.set("after", search.upto);
  const now = await ask("state", query);
  texts(at("said"), now.said, "p", "headline");
  texts(at("faults"), now.faults, "li", "fault");
  for (const name of now.sources) {
    const source = form.elements.source;
    if (![...source.options].some((option) => option.value === name)) source.append(new Option(name, name));
  }
  const caughtUp = search.behind && !now.behind;
  search.behind = now.behind;
  if (now.traces !== search.version || caughtUp) await find(search.page, null);
  else if (now.fresh && (search.total === 0 || (at("follow").checked && search.page === 1))) await find(1, null);
  else {
    at("fresh").hidden = now.fresh === 0 || now.behind;
    at("fresh").textContent = `Show ${now.fresh.toLocaleString("en")} new`;
  }
  if (now.page !== at("now").dataset.version && performance.now() > clock.drawAfter) {
    const began = performance.now();
    show(await drawnNow());
    // A run that trains on the same processor goes first.
    clock.drawAfter = performance.now() + SHARE_OF_TIME * (performance.now() - began);
  }
  return now.behind;
}

function texts(list, said, name, kind) {
  const old = [...list.children].map((each) => each.textContent);
  if (old.join("\n") !== said.join("\n")) list.replaceChildren(...said.map((text) => make(name, { class: kind }, text)));
}

async function tick() {
  clearTimeout(clock.timer);
  if (clock.busy) return;
  clock.busy = true;
  let wait = EVERY_MS;
  if (!document.hidden) {
    try { if (await look()) wait = READING_MS; }
    catch { texts(at("said"), ["covrl view does not answer: it was stopped, or its address has changed. What is here is what it showed last."], "p", "headline"); }
  }
  clock.busy = false;
  clock.timer = setTimeout(tick, wait);
}

let typing = 0;
form.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(changed, TYPING_MS); });
form.addEventListener("submit", (event) => { event.preventDefault(); changed(); });
form.addEventListener("reset", () => { form.elements.only.value = ""; setTimeout(changed); });
at("only").querySelector("button").addEventListener("click", () => { form.elements.only.value = ""; changed(); });
at("fresh").addEventListener("click", () => find(1, null));
at("follow").addEventListener("change", () => { if (at("follow").checked) find(1, null); });
for (const button of at("turn").querySelectorAll("button")) {
  button.addEventListener("click", async () => { await find(search.page + Number(button.value), search.upto); at("traces").scrollIntoView(); });
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) tick(); });
remembered();
tick();
