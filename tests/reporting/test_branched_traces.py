"""Where a trace branched from: kept in the file, told on the page, and old files are read."""

from __future__ import annotations

import json
from pathlib import Path

from covrl.records import Problem, StepReport, TraceGroup, TraceView
from covrl.reporting.html import render_report
from covrl.reporting.sinks import TracesSink, read_traces
from covrl.reporting.summary import RunSummary

PROBLEM = Problem("p", "6 x 7?", "42")


def view(index: int | None, parent: int | None = None) -> TraceView:
    return TraceView("prior", f"trace {index}", "closed", -1.0, 0.1, None, index=index, parent=parent)


def page(*traces: TraceView) -> str:
    group = TraceGroup(PROBLEM, traces)
    return render_report(RunSummary("t", steps=[StepReport(1, {"reward/prior": 1.0}, (), (group,))]))


def test_branches_survive_the_file(tmp_path: Path) -> None:
    group, path = TraceGroup(PROBLEM, (view(0), view(4, 0))), tmp_path / "traces.jsonl"
    sink = TracesSink(path)
    sink.write(StepReport(1, {}, (), (group,)))
    sink.close()
    assert read_traces(path)[1] == (group,)
    record = json.loads(path.read_text())
    for trace in record["groups"][0]["traces"]:
        del trace["index"], trace["parent"]
    path.write_text(json.dumps(record) + "\n")
    (old,) = read_traces(path)[1]
    assert [(t.index, t.parent) for t in old.traces] == [(None, None)] * 2


def test_the_page_tells_which_rollout_a_trace_branched_from() -> None:
    told = page(view(2), view(7, 2))
    assert "<p class='remark'>rollout 2</p>" in told
    assert "<p class='remark'>rollout 7, branched from rollout 2</p>" in told


def test_a_page_without_branches_numbers_no_rollouts() -> None:
    assert "rollout 2" not in page(view(2), view(3))
