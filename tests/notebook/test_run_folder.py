"""`covrl.Run`: what its frames hold is what the run's files hold, whatever state the files are in."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas
import pytest

from covrl import Run, UserError
from covrl.extras import install_command
from covrl.notebook.frames import TRACE
from covrl.records import Problem, StepReport, TraceGroup, TraceView
from covrl.reporting.sinks import JsonlSink, TracesSink, read_traces

OLD_RUN = Path(__file__).parents[1] / "old_runs/f21ff7b/covrl"
ATTACK = "</pre></style><script>alert(1)</script><img src=x onerror=alert(2)> $\\href{javascript:alert(3)}{x}$"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of three steps, of which the second showed its traces."""
    made = tmp_path / "run"
    made.mkdir()
    (made / "config.toml").write_text(
        '[algorithm]\nname = "grpo"\n[problems]\ntrain = "a.jsonl"\n[training]\nsteps = 4\n'
    )
    write(made, [report(step) for step in (1, 2, 3)])
    return made


def report(step: int, shift: float = 0.0) -> StepReport:
    metrics = {"reward/prior": 0.1 * step + shift, "loss/policy": math.nan}
    metrics |= {"eval/accuracy": 1 / 3} if step == 2 else {}
    right = TraceView("prior", f"a{step}", "closed", 0.1, 0.7, None, "right", index=0, rewards={"brief": 0.3})
    wrong = TraceView("prior", ATTACK, "length", None, -0.7, 0.2, "wrong", index=1, parent=0, rewards={"brief": None})
    groups = [TraceGroup(Problem("p/1", "1+1?", "2"), (right, wrong))] if step == 2 else []
    return StepReport(step, metrics, ("slow",), groups)


def write(folder: Path, reports: list[StepReport]) -> None:
    for sink in (JsonlSink(folder / "metrics.jsonl"), TracesSink(folder / "traces.jsonl")):
        for each in reports:
            sink.write(each)
        sink.close()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_equal_to_file(frame: pandas.DataFrame, records: list[dict]) -> None:
    assert list(frame.index) == [record["step"] for record in records]
    assert frame.index.name == "step"
    assert set(frame.columns) == {name for record in records for name in record["metrics"]}
    for record in records:
        for name in frame.columns:
            value, found = record["metrics"].get(name), frame.loc[record["step"], name]
            assert math.isnan(found) if value is None else found == value, (record["step"], name)


def test_metrics_are_those_of_the_file_to_the_value(folder: Path) -> None:
    frame = Run(folder).metrics
    assert_equal_to_file(frame, lines(folder / "metrics.jsonl"))
    assert frame.loc[2, "eval/accuracy"] == 1 / 3
    assert list(frame.columns) == ["reward/prior", "loss/policy", "eval/accuracy"], "in the order of their coming"


def test_metrics_of_a_run_that_was_trained(tmp_path: Path) -> None:
    records = lines(OLD_RUN / "metrics.jsonl")
    assert len(records) > 1
    assert_equal_to_file(Run(str(OLD_RUN)).metrics, records)


def test_steps_that_a_resumed_run_took_again_are_there_once(folder: Path) -> None:
    write(folder, [report(2, shift=5.0), report(3, shift=5.0), report(4, shift=5.0)])
    run = Run(folder)
    assert list(run.metrics.index) == [1, 2, 3, 4]
    assert list(run.metrics["reward/prior"]) == [0.1, 5.2, 0.1 * 3 + 5, 0.1 * 4 + 5]
    assert len(run.traces) == 2


@pytest.mark.parametrize("name", ["metrics.jsonl", "traces.jsonl"])
def test_a_line_that_is_being_written_is_left_out_and_left_alone(folder: Path, name: str) -> None:
    before = Run(folder).metrics, Run(folder).traces
    whole = (folder / name).read_bytes()
    torn = whole + whole.splitlines()[-1][:40]
    (folder / name).write_bytes(torn)
    run = Run(folder)
    pandas.testing.assert_frame_equal(run.metrics, before[0])
    pandas.testing.assert_frame_equal(run.traces, before[1])
    assert run._repr_html_()
    assert (folder / name).read_bytes() == torn


def test_what_another_process_writes_is_seen_at_the_next_look(folder: Path) -> None:
    run = Run(folder)
    assert "3 of 4 steps" in repr(run)
    write(folder, [report(4)])
    assert list(run.metrics.index) == [1, 2, 3, 4]
    assert repr(run).endswith("grpo on a.jsonl, 4 of 4 steps>")


def test_traces_are_those_of_the_file(folder: Path) -> None:
    frame = Run(folder).traces
    assert list(frame.columns) == [*TRACE, "reward/brief"]
    (group,) = read_traces(folder / "traces.jsonl")[2]
    for place, trace in enumerate(group.traces):
        row = frame.iloc[place]
        assert (row.step, row.problem, row.question, row.answer) == (2, "p/1", "1+1?", "2")
        assert (row.source, row.text, row.verdict, row.finish) == ("prior", trace.text, trace.correct, trace.finish)
        assert (row.rollout, row.advantage) == (trace.index, trace.advantage)
    assert frame["reward"].tolist()[0] == 0.1
    assert frame[["reward", "reward/brief", "kl", "parent"]].isna().to_numpy().tolist() == [
        [False, False, True, True],
        [True, True, False, False],
    ]


def test_a_run_without_a_step_or_a_trace_has_empty_frames(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()
    (folder / "traces.jsonl").unlink()
    run = Run(folder)
    assert run.metrics.shape == (0, 0)
    assert list(run.traces.columns) == list(TRACE)
    assert len(run.traces) == 0
    assert "0 of 4 steps" in run._repr_html_()
    assert "no metric yet" in repr(run.plot())


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
    if what == "file":
        path.write_text("x")
    with pytest.raises(UserError) as caught:
        Run(path)
    assert str(caught.value) == f"{path}: there is no run in this folder: it has no config.toml"


def test_a_damaged_line_is_named_and_not_skipped(folder: Path) -> None:
    content = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(content[0] + b'{"step": 2, "metr\n' + content[2])
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not a line that covrl wrote"):
        _ = Run(folder).metrics


def test_without_pandas_the_package_is_named_and_the_rest_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    run = Run(folder)
    for frame in ("metrics", "traces"):
        with pytest.raises(UserError) as caught:
            getattr(run, frame)
        assert str(caught.value) == f"frames of a run need the package pandas: {install_command('notebook')}"
    assert [each.step for each in run.steps()] == [1, 2, 3]
    assert "3 of 4 steps" in run._repr_html_()
    assert "reward/prior" in repr(run.plot())


def test_a_run_is_looked_at_without_torch_pandas_and_ipython() -> None:
    heavy = ["torch", "transformers", "pandas", "IPython", "ipykernel", "nbclient", "nbformat"]
    code = (
        f"import covrl, sys; print([m for m in {heavy} if m in sys.modules]); covrl.Run({str(OLD_RUN)!r})._repr_html_()"
    )
    code += f"; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


class Cell(HTMLParser):
    """The elements, attributes and text of what a cell shows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_traces_are_text_in_a_cell(folder: Path) -> None:
    html = Run(folder)._repr_html_()
    cell = Cell(html)
    assert ATTACK in cell.text
    assert not {"script", "img", "a", "iframe", "link", "foreignobject"} & set(cell.tags)
    assert cell.tags.count("style") == 1
    assert not [name for name in cell.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert "mathjax_ignore" in html.partition(">")[0], "a formula of a trace is text, too"
    assert "<script>" not in Run(folder).traces.to_html(), "pandas escapes"


def test_a_cell_shows_how_far_a_run_is_and_its_figures(folder: Path) -> None:
    text = Cell(Run(folder)._repr_html_()).text
    for shown in (
        "grpo on a.jsonl",
        "3 of 4 steps",
        "33.3\u00a0%",
        "Held-out accuracy",
        "step 1, 3 times: slow",
        "1+1?",
    ):
        assert shown in text


def test_a_plot_has_the_metrics_that_were_named(folder: Path) -> None:
    run = Run(folder)
    every = Cell(run.plot("*")._repr_html_())
    assert every.tags.count("figure") == 3
    one = Cell(run.plot("reward/*")._repr_html_())
    assert one.tags.count("figure") == 1
    assert "Reward by source" in one.text
    assert "narrows" in one.text, "a sentence on what is healthy"
    assert repr(run.plot("eval/accuracy", "reward/*")) == "<charts of reward/prior, eval/accuracy>"
    with pytest.raises(UserError, match=r"^no metric 'reward/pior': near are reward/prior"):
        run.plot("reward/*", "reward/pior")


def test_the_report_is_written_from_python_too(folder: Path) -> None:
    path = Run(folder).report()
    assert path == folder / "report.html"
    assert "1+1?" in path.read_text(encoding="utf-8")


def test_the_model_is_the_best_one(tmp_path: Path) -> None:
    shutil.copytree(OLD_RUN, tmp_path / "run")
    assert Run(tmp_path / "run").model == tmp_path / "run/best"
    shutil.rmtree(tmp_path / "run/best")
    assert Run(tmp_path / "run").model == tmp_path / "run/checkpoints/step-000002/model"
