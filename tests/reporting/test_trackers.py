from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from covrl.errors import UserError
from covrl.records import StepReport
from covrl.reporting.trackers import make_trackers

REPORT = StepReport(3, {"reward/prior": -1.5, "leak/excess": float("nan")})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_log_tracker_gets_finite_metrics_and_is_finished(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    run = SimpleNamespace(
        log=lambda metrics, step: seen.append((metrics, step)), finish=lambda: seen.append("finished")
    )
    started = {}
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=lambda **options: started.update(options) or run))
    (tracker,) = make_trackers([name], tmp_path / "a-run", {"seed": 1})
    tracker.write(REPORT)
    tracker.close()
    assert seen == [({"reward/prior": -1.5}, 3), "finished"]
    assert started == {"project": "covrl", "name": "a-run", "config": {"seed": 1}}


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra is not installed")
    (tracker,) = make_trackers(["tensorboard"], tmp_path, {})
    tracker.write(REPORT)
    tracker.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"reward/prior" in events.read_bytes()
    assert b"training reward and held-out accuracy" in events.read_bytes(), "both in one chart"


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="is not installed: pip install 'wandb"):
        make_trackers(["wandb"], tmp_path, {})
