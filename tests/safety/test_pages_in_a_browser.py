"""Pages full of hostile text in a real browser: nothing of it runs, and nothing is requested over the network.

Each page is opened twice: as it is, and with its content security policy switched off, so that the escaping alone has
to hold. A page that is not escaped comes first: it must set off what the others are searched for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from chromium import Chromium
from mines import FOUND, NEEDS_BROWSER, SHAKE, Server

from covrl.comparison.cells import Budget, Cell, Exam, Result
from covrl.comparison.page import render as render_comparison
from covrl.comparison.summary import lines
from covrl.evaluation.exam import Sample, Solved
from covrl.notebook.view import Heading, charts, overview
from covrl.records import Problem, StepReport, TokenView, TraceGroup, TraceView
from covrl.reporting.exams import render_exams
from covrl.reporting.html import render_report
from covrl.reporting.reliability import render_reliability
from covrl.reporting.sinks import JsonlSink, TracesSink, read_steps
from covrl.reporting.summary import Attempt, Example, Note, ResultRow, RunSummary

pytestmark = NEEDS_BROWSER


def report(attacks: tuple[str, ...], folder: Path) -> str:
    """The report of a run of whose every text is an attack, through the files that a run leaves."""
    steps = []
    for step, attack in enumerate(attacks, start=1):
        tokens = tuple(TokenView(piece, -0.1 * i, -2.0) for i, piece in enumerate([attack, *attack.split(" ")]))
        views = (
            TraceView(attack, attack, "closed", -1.0, 1.0, None),
            TraceView("prior", attack, "length", -1.0, 0.5, 0.1, tokens=tokens, correct="wrong"),
        )
        group = TraceGroup(Problem(attack, attack, attack, (attack,), attack), views)
        steps.append(
            StepReport(step, {"reward/prior": -1.0 / step, f"x/{attack}": 1.0, attack: 2.0}, (attack,), (group,))
        )
    for sink in (JsonlSink(folder / "metrics.jsonl"), TracesSink(folder / "traces.jsonl")):
        for each in steps:
            sink.write(each)
        sink.close()
    every = " ".join(attacks)
    return render_report(
        RunSummary(
            title=every,
            subtitle=every,
            headline=every,
            config={attack: {attack: [attack]} for attack in attacks},
            steps=list(map(odd, read_steps(folder / "metrics.jsonl", folder / "traces.jsonl"), attacks)),
            results=[ResultRow(attack, 0.1, 0.2, 0.1, attack, unit="share") for attack in attacks],
            examples=[Example(a, a, Attempt(a, "wrong"), Attempt(a, a)) for a in attacks],  # ty: ignore
            notes=[Note(attack) for attack in attacks],
        )
    )


def odd(step: StepReport, attack: str) -> StepReport:
    """A step whose ends and verdicts are attacks; read from a file they would have been refused."""
    (group,) = step.groups
    traces = tuple(replace(trace, finish=attack, correct=attack) for trace in group.traces)  # ty: ignore
    return replace(step, groups=(replace(group, traces=traces),))


def evaluation(attacks: tuple[str, ...], folder: Path) -> str:
    class Table:
        title, about, head, rows = attacks[0], " ".join(attacks), list(attacks), [[a] * len(attacks) for a in attacks]

    def sample(attack: str, verdict: str) -> Sample:
        return Sample(attack, attack, attack, verdict, "closed", 1, 1, False, 1.0, attack)  # ty: ignore

    solved = {
        (exam, model): [
            Solved(a, a, a, a, sample(a, "right" if i == "m" else "wrong"), (sample(a, "wrong"),)) for a in attacks
        ]
        for exam in attacks
        for i, model in (("m", exam), ("n", f"{exam} "))
    }
    curves = {attack: dict.fromkeys(attacks, (0.1, 0.2)) for attack in attacks}
    return render_exams([Table()], list(attacks), solved, curves)


def calibration(attacks: tuple[str, ...], folder: Path) -> str:
    part = {"from": 0.0, "to": 1.0, "p": 0.5, "right": 0.5, "interval": [0.1, 0.9], "count": 3}
    names = ("right", "auc", "auc_within", "expected_calibration_error", "brier", "traces", "questions")
    record = dict.fromkeys((*names, "questions_with_both"), 1)
    every = " ".join(attacks)
    texts = {"model": every, "problem_source": every, "sentence": every}
    texts |= {"marked_by": every, "reward": every}
    parts = {"reliability": [part], "by_log_prob": [part], "sampled": Filled()}
    parts["posterior_gain"] = {"sentence": every}
    return render_reliability(Filled(record | texts | parts))


class Filled(dict):
    """Figures that the page asks for and that are of no matter here are 0.5."""

    def __missing__(self, key: str) -> float:
        return 0.5


def comparison(attacks: tuple[str, ...], folder: Path) -> str:
    found = {}
    for method in attacks:
        for seed in (0, 1):
            cell = Cell(method, "rare", 1e-4, seed, Budget("steps", 20), Exam("test", 8))
            exam = {"problems": 50, "greedy": 0.5, "n": 8, "avg@n": 0.4, "pass@1": 0.4, "intervals": {}, method: 0.5}
            point = {"generated": 9.0, "scored": 9.0, "trained": 9.0, "accuracy": 0.5, "sound": None}
            tokens = {"generated": 9.0, "scored": 9.0, "trained": 9.0}
            figures = {"chance": 0.1, "steps": 20, "stopped": method, "exam": exam, "tokens": tokens}
            figures |= {"curve": [{"step": 0, **point}, {"step": 20, **point}], "seconds": {method: 1.0, "train": 1.0}}
            found[cell] = Result(cell, method, figures)
    return render_comparison(lines(list(found), found), {cell: cell.method for cell in found})


def notebook(attacks: tuple[str, ...], folder: Path) -> str:
    """What cells show of runs, in a page without any policy, as a notebook's is."""
    shown = []
    for attack in attacks:
        view = TraceView(attack, attack, attack, -1.0, 1.0, None, correct=attack)  # ty: ignore
        group = TraceGroup(Problem(attack, attack, attack), (view,))
        metrics = {"eval/accuracy": 0.5, attack: 1.0, f"x/{attack}": 2.0}
        steps = [StepReport(step, metrics, (attack,), (group,)) for step in (1, 2)]
        shown += [overview(Heading(attack, attack, attack, 0.5, attack), steps, [attack]), charts(steps, ["*"]).html]
    return "<!doctype html><meta charset=utf-8><title>cells</title>" + "".join(shown)


PAGES = {"report": report, "eval": evaluation, "calibrate": calibration, "compare": comparison, "notebook": notebook}


def test_the_mines_go_off_where_nothing_is_escaped(
    browser: Chromium, server: Server, attacks: tuple[str, ...], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    ran = 0
    for attack in attacks[:11]:
        text = attack.encode("utf-8", "replace").decode()
        page.write_text(f"<!doctype html><meta charset=utf-8><p title='{text}'>{text}</p>", encoding="utf-8")
        browser.open(page, policy=False)
        ran += browser.run(SHAKE) > 0
    assert ran >= 8
    assert "/ran" in server.asked
    assert "/img" in server.asked
    server.asked.clear()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("policy", [True, False], ids=["with its policy", "by escaping alone"])
def test_nothing_runs_and_nothing_is_requested(
    browser: Chromium, server: Server, attacks: tuple[str, ...], tmp_path: Path, name: str, policy: bool
) -> None:
    page = tmp_path / f"{name}.html"
    page.write_bytes(PAGES[name](attacks, tmp_path).encode("utf-8", "backslashreplace"))
    server.asked.clear()
    browser.open(page, policy)
    assert browser.run(SHAKE) == 0
    found = browser.run(FOUND)
    assert browser.run("location.href").partition("#")[0] == page.as_uri()
    assert {url.partition("#")[0] for url in browser.requests} == {page.as_uri()}
    assert browser.dialogs == []
    assert server.asked == []
    assert found["odd"] == []
    assert found["inputs"] == 0
    assert found["scripts"] == (1 if name == "report" else 0)
    assert found["styles"] <= (2 * len(attacks) if name == "notebook" else 2)
    assert found["handlers"] == found["links"] == []
    assert found["inline"] == 0
    assert found["hidden"] != "none"
    assert "<img src=" in found["text"], "the text is there to be read"
