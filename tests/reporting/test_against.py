"""The chart of training reward against held-out accuracy."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from covrl.records import StepReport
from covrl.reporting.against import LEAST_SCALE, against, parted
from covrl.reporting.folder import summary_of
from covrl.reporting.html import render_report
from covrl.reporting.sinks import JsonlSink
from covrl.reporting.summary import RunSummary


def steps(accuracy: str = "eval/sampled", **constant: float) -> list[StepReport]:
    """A run of 40 steps: the reward rises from 48 to 144 while accuracy stays; the watch sees it from step 20."""
    made = []
    for step in range(1, 41):
        metrics: dict[str, float] = {"reward/prior": 48 + 96 * (step - 1) / 39, **constant}
        if step % 10 == 0 or step == 1:
            metrics |= {accuracy: 0.02, "watch/parted": float(step >= 20)}
        made.append(StepReport(step, metrics))
    return made


def data(chart: str) -> dict[str, Any]:
    found = re.search(r"data-chart='([^']*)'", chart)
    assert found
    return json.loads(unescape(found[1]))


@pytest.mark.parametrize("accuracy", ["eval/sampled", "eval/accuracy"])
def test_both_lines_are_in_one_drawing_each_on_its_own_scale(accuracy: str) -> None:
    chart = against(steps(accuracy))
    assert chart.count("<svg viewBox=") == 1
    first, second = data(chart)["series"]
    assert first["v"][0].replace("\u00a0", " ") == "2.0 %"
    assert (second["v"][0], second["v"][-1]) == ("48.0", "144")
    assert second["y"][0] > second["y"][-1], "the reward climbs"
    low, high = data(chart)["box"][3], data(chart)["box"][2]
    assert first["y"][0] > low - (low - high) * 0.02 / LEAST_SCALE - 1, "2 % is near the bottom of the scale"
    assert "held-out accuracy from 2.0" in chart
    assert "<g class='scale'>" in chart


def test_what_the_watch_saw_is_shaded() -> None:
    assert list(parted(steps())) == [(10, 20), (20, 30), (30, 40)]
    assert against(steps()).count("<rect class='parted'") == 3
    honest = [StepReport(s.step, {k: v for k, v in s.metrics.items() if k != "watch/parted"}) for s in steps()]
    assert "class='parted'" not in against(honest)


def test_the_report_has_it_first_and_only_where_there_is_something_to_draw() -> None:
    page = render_report(RunSummary(title="x", steps=steps()))
    assert page.index("Training reward against held-out accuracy") < page.index("<h3>Reward watch: rise of the reward")
    blind = [StepReport(s.step, {"reward/prior": 1.0}) for s in steps()]
    assert against(blind) == ""
    assert against([StepReport(1, {"eval/sampled": 0.1})]) == ""
    broken = [StepReport(s.step, {"reward/prior": float("nan"), "eval/sampled": 0.5}) for s in steps()]
    assert against(broken) == ""


def test_a_run_without_verified_answers_says_that_the_watch_was_blind(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    for name, metrics, blind in (
        ("a", {"reward/prior": 1.0}, True),
        ("b", {"reward/prior": 1.0, "eval/accuracy": 0.5}, False),
        ("c", {"optim/lr": 1.0}, False),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.toml").write_text("")
        sink = JsonlSink(folder / "metrics.jsonl")
        sink.write(StepReport(1, metrics))
        sink.close()
        assert ("the reward watch was blind" in render_report(summary_of(folder))) is blind
