"""The cell of a notebook that trains: how often it is drawn, and what it shows at the end."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import covrl
from covrl.errors import RunInterruptedError, TrainingStoppedError, UserError
from covrl.notebook.live import LONGEST_S, SHARE, LiveView, in_notebook
from covrl.notebook.view import Shown
from covrl.records import StepReport
from covrl.reporting.sinks import read_metrics

SETTINGS = {
    "model": {"path": "covrl:digits", "device": "cpu"},
    "algorithm": {"name": "covrl"},
    "prompts": {
        "user": "<user>{question}",
        "prior_open": "<assistant><think>",
        "posterior_open": "<hint>{hint}<assistant><think>",
        "close": "</think>",
        "answer_prefix": "<answer>",
        "answer_suffix": "</answer>",
    },
    "generation": {"max_trace_tokens": 20, "max_answer_tokens": 3},
    "training": {"steps": 4, "problems_per_step": 2, "rollouts_per_problem": 2},
    "evaluation": {"every": 0},
    "report": {"traces_every": 2},
}


class Cell:
    """Stands for a notebook's cell, with a clock that drawing takes ``seconds`` of."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.now, self.seconds = 0.0, seconds
        self.displays = 0
        self.shown: list[Shown] = []

    def display(self, shown: Shown) -> Cell:
        self.displays += 1
        self.update(shown)
        return self

    def update(self, shown: Shown) -> None:
        self.now += self.seconds
        self.shown.append(shown)

    def view(self, total: int, earlier: list[StepReport] | None = None) -> LiveView:
        return LiveView("runs/a", "covrl", total, earlier or [], self.display, lambda: self.now)


def take(view: LiveView, cell: Cell, steps: range, seconds: float) -> None:
    for step in steps:
        cell.now += seconds
        view.write(StepReport(step, {"reward/prior": -1.0 / step, "time/step": seconds}))


def test_one_display_is_updated_about_once_a_second() -> None:
    cell = Cell()
    with cell.view(1000) as view:
        take(view, cell, range(1, 1001), 0.01)
    assert cell.displays == 1
    assert 8 <= len(cell.shown) <= 13, "ten seconds"
    assert "step 1000 of 1000" in repr(cell.shown[-1])


def test_long_runs_are_drawn_ever_less_often() -> None:
    cell = Cell()
    with cell.view(100_000) as view:
        take(view, cell, range(1, 201), 36.0)
    assert len(cell.shown) == 202, "a step that takes longer than the longest gap is drawn when it is done"
    with (cell := Cell()).view(100_000) as view:
        take(view, cell, range(1, 7201), 1.0)
    assert 7200 / LONGEST_S < len(cell.shown) < 1.7 * 7200 / LONGEST_S


def test_drawing_takes_a_small_share_of_the_time() -> None:
    cell = Cell(seconds=0.5)
    with cell.view(2000) as view:
        take(view, cell, range(1, 2001), 0.1)
    assert len(cell.shown) * 0.5 <= SHARE * cell.now + 3 * 0.5


def test_the_first_steps_are_shown_at_once_and_the_last_in_any_case() -> None:
    cell = Cell()
    with cell.view(3) as view:
        assert "starting" in repr(cell.shown[-1])
        take(view, cell, range(1, 2), 2.0)
        assert "step 1 of 3" in repr(cell.shown[-1])
        assert "4s left" in repr(cell.shown[-1])
        take(view, cell, range(2, 4), 0.1)
        assert "step 1 of 3" in repr(cell.shown[-1])
        view.close()
        assert "step 3 of 3" in repr(cell.shown[-1])


def test_a_resumed_run_shows_its_earlier_steps_and_the_pace_of_the_new_ones() -> None:
    cell = Cell()
    before = [StepReport(step, {"reward/prior": -9.0}) for step in range(1, 11)]
    with cell.view(12, before) as view:
        take(view, cell, range(11, 13), 3.0)
    assert "step 12 of 12 · 6s elapsed · 3.00 s a step" in repr(cell.shown[-1])
    assert "−9.00" in cell.shown[-1]._repr_html_()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RunInterruptedError("interrupted after step 1; continue with: covrl"),
            "interrupted after step 1; continue with",
        ),
        (UserError("the disk is <full>"), "the disk is &lt;full&gt;"),
        (ZeroDivisionError("division by zero"), "ended by ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), "ended by KeyboardInterrupt"),
    ],
)
def test_the_cell_says_how_a_run_ended(error: BaseException, said: str) -> None:
    cell = Cell()

    def end() -> None:
        with cell.view(9) as view:
            take(view, cell, range(1, 2), 0.1)
            raise error

    with pytest.raises(type(error)):
        end()
    assert said in cell.shown[-1]._repr_html_()
    assert "left" not in repr(cell.shown[-1]).partition(";")[0]


def test_a_note_of_a_signal_in_the_middle_of_a_drawing_waits_for_the_next() -> None:
    cell = Cell()
    view = cell.view(9)
    plain = cell.update

    def interrupted(shown: Shown) -> None:
        cell.update = plain  # ty: ignore[invalid-assignment]
        view.note("SIGINT: stopping")
        plain(shown)

    with view:
        cell.update = interrupted  # ty: ignore[invalid-assignment]
        view.note("first")
        assert len(cell.shown) == 2, "not drawn inside a drawing"
        assert "SIGINT" not in cell.shown[-1]._repr_html_()
        view.close()
        assert "SIGINT: stopping" in cell.shown[-1]._repr_html_()


def test_a_kernel_is_known_by_its_shell_and_a_terminal_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    for shell, expected in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=object()), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert in_notebook() is expected


def test_our_errors_are_one_line_in_a_notebook() -> None:
    for error in (UserError("a"), RunInterruptedError("a"), TrainingStoppedError("a")):
        assert error._render_traceback_() == [f"{type(error).__name__}: a"]


class Stop:
    """A sink that asks for the end after a step, as the interrupt of a kernel does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def write(self, report: StepReport) -> None:
        if report.step == self.step:
            signal.raise_signal(signal.SIGINT)

    def close(self) -> None: ...


def test_an_interrupted_run_says_how_to_resume_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cell = Cell()
    monkeypatch.chdir(tmp_path)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    module = SimpleNamespace(display=lambda shown, display_id: cell.display(shown))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    problems = [covrl.Problem(str(n), str(n), str(n)[:3]) for n in (12345, 54321, 31524)]
    with pytest.raises(RunInterruptedError) as caught:
        covrl.train(SETTINGS, problems, out="run", sinks=[Stop(2)])
    told = "interrupted after step 2; continue with: covrl.train(resume='run', problems=problems)"
    assert str(caught.value) == told
    assert told in repr(cell.shown[-1])
    assert "SIGINT: stopping" in cell.shown[-1]._repr_html_()
    assert list(covrl.Run("run").metrics.index) == [1, 2]

    trained = covrl.train(resume="run", problems=problems)
    assert isinstance(trained, covrl.Run)
    assert list(trained.metrics.index) == [1, 2, 3, 4]
    assert [each.step for each in trained.reports] == [3, 4]
    assert "step 4 of 4" in repr(cell.shown[-1])
    assert cell.displays == 2
    assert repr(trained) == "<covrl run run: covrl on digits:train, 4 of 4 steps>"
    assert capfd.readouterr().out == ""


def test_outside_a_notebook_nothing_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = {"training": {"steps": 1, "problems_per_step": 2, "rollouts_per_problem": 2}}
    trained = covrl.train(SETTINGS | few | {"problems": {"train": "digits:train"}}, out=tmp_path / "run")
    assert "covrl on digits:train, 1 of 1 steps" in repr(trained)
    assert capfd.readouterr() == ("", "")
    (line,) = read_metrics(tmp_path / "run/metrics.jsonl")
    assert trained.metrics.loc[1].dropna().to_dict() == {n: v for n, v in line.metrics.items() if v == v}
    assert "IPython" not in sys.modules or not in_notebook()


def test_what_a_resumed_run_is_given_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^resume continues the run as it is: leave config and out away$"):
        covrl.train(SETTINGS, resume=tmp_path)
    with pytest.raises(UserError, match=r"^give settings, or the folder of a run to resume$"):
        covrl.train()
    with pytest.raises(UserError, match=r"config\.toml"):
        covrl.train(resume=tmp_path / "nothing")
