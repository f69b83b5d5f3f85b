"""What hostile rows cost: counted in processes, never in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from covrl.records import Problem
from covrl.rewards.verifiers import MathVerifier
from covrl.rewards.workers import ENDS_PER_CALL, NOT_TRIED

BURST = 60


def stand_in(folder: Path, hostile: str) -> None:
    """A math-verify that does ``hostile`` on what has a "13" in it, and compares text else."""
    (folder / "math_verify.py").write_text(
        "import os, time\n"
        "class LatexExtractionConfig:\n    def __init__(self, **_): pass\n"
        "class grader:\n    simplify = sympy_numeric_eq = None\n"
        f"def parse(text, *_, **__): return {hostile} if '13' in text else [text]\n"
        "def verify(a, b, **_): return a == b\n"
    )
    (folder / "latex2sympy2_extended.py").write_text("class NormalizationConfig:\n    def __init__(self, **_): pass\n")


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MathVerifier]:
    """It crashes at once: a burst costs no waiting."""
    stand_in(tmp_path, "os.abort()")
    monkeypatch.syspath_prepend(tmp_path)
    with MathVerifier(workers=1) as verifier:
        yield verifier


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MathVerifier]:
    """It hangs, so that each hostile row costs its whole limit."""
    stand_in(tmp_path, "time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    with MathVerifier(time_limit_s=2.0, workers=2) as verifier:
        yield verifier


def row(answer: str) -> tuple[Problem, str]:
    return Problem("p", "?", "x"), f"\\boxed{{{answer}}}"


def test_a_burst_of_hostile_rows_ends_few_workers_and_the_others_are_graded(crashing: MathVerifier) -> None:
    hostile = [row(f"{n}13^{{10^9}}x") for n in range(BURST)]
    honest = [row(f"x+{n}") for n in range(20, 20 + BURST)]
    judged = crashing.judge_all([r for pair in zip(hostile, honest, strict=True) for r in pair])
    work = crashing.workers.work
    assert [j.verdict for j in judged[1::2]] == ["wrong"] * BURST
    assert {j.verdict for j in judged[::2]} == {"unknown"}
    assert work.ended == ENDS_PER_CALL
    assert work.started <= ENDS_PER_CALL + 1
    assert (
        work.not_tried == sum(j.why == NOT_TRIED.why for j in judged) == BURST - ENDS_PER_CALL // 2
    )  # each had two tries


def test_a_burst_of_hanging_rows_is_given_up_after_a_few(hanging: MathVerifier) -> None:
    """A row that hangs has one try, so as many rows hang as processes are ended; the honest ones were asked before."""
    hostile = [row(f"{n}13^{{10^9}}x") for n in range(BURST)]
    honest = [row(f"x+{n}") for n in range(20, 20 + BURST)]
    judged = hanging.judge_all([r for pair in zip(hostile, honest, strict=True) for r in pair])
    work = hanging.workers.work
    assert [j.verdict for j in judged[1::2]] == ["wrong"] * BURST
    assert {j.verdict for j in judged[::2]} == {"unknown"}
    overdue = sum(j.why.startswith("time limit") for j in judged[::2])
    assert overdue == work.ended
    assert ENDS_PER_CALL <= work.ended <= ENDS_PER_CALL + 1  # two workers may be given up in one look
    assert work.not_tried == BURST - work.ended
    asked = work.asked
    assert {
        j.verdict for j in hanging.judge_all([hostile[i] for i in range(BURST) if "time" in judged[2 * i].why])
    } == {"unknown"}
    assert work.asked == asked, "rows that hung are remembered"


def test_no_row_pays_for_loading_sympy(tmp_path: Path) -> None:
    """It takes a second, and a row has a limit; math-verify is a stand-in here that does not load it."""
    stand_in(tmp_path, "None")
    program = "import sys; from covrl.rewards import math_worker; math_worker._load(); print('sympy' in sys.modules)"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"


def test_every_call_has_a_budget_of_its_own(crashing: MathVerifier) -> None:
    crashing.judge_all([row(f"{n}13x") for n in range(BURST)])
    assert crashing(*row("x+1")).verdict == "wrong"
    assert crashing(*row("13x")).why.startswith("worker died")


def test_a_row_that_ended_a_worker_is_not_tried_again(crashing: MathVerifier) -> None:
    first = crashing(*row("13x"))
    ended = crashing.workers.work.ended
    again = crashing.judge_all([row("13x"), row("13 x"), row("x+1")])
    assert ended == 2
    assert again[0] == first
    assert again[2].verdict == "wrong"
    assert crashing.workers.work.ended == ended + 2  # the second row alone, which is another text


def test_equal_rows_are_asked_once(crashing: MathVerifier) -> None:
    judged = crashing.judge_all([row("x+1")] * 50 + [row("13x")] * 50)
    assert crashing.workers.work.asked == 2
    assert crashing.workers.work.ended == 2
    assert [j.verdict for j in judged] == ["wrong"] * 50 + ["unknown"] * 50
