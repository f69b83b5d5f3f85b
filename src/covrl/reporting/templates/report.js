
// Chooses the traces that the report shows; without it all of them are there.
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

browseTraces();
