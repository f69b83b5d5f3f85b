"""Trackers against their real clients, without a network.

``pip install wandb mlflow-skinny trackio``, then ``make check-slow``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from covrl.config import RunConfig, check
from covrl.records import Problem, StepReport, TraceGroup, TraceView
from covrl.reporting.trackers import COLUMNS, FILE, make_trackers

TRACE = TraceView("prior", "2 + 2 is 4</think>", "closed", -0.25, 1.5, None, "right", index=0)
SHOWN = StepReport(1, {"reward/prior": -2.0}, groups=(TraceGroup(Problem("p", "2 + 2", "4"), (TRACE,)),))
LATER = StepReport(2, {"reward/prior": -1.5, "eval/pass@1": 0.5})


def twice(name: str, folder: Path) -> str:
    """A run of two steps that is interrupted after the first; its id."""
    report = {"trackers": [name], "tracker_project": "sums", "tracker_tags": ["small"]}
    table = {"model": {"path": "m"}, "training": {"steps": 2}, "report": report}
    for step in (SHOWN, LATER):
        (tracker,) = make_trackers(check(RunConfig, table), folder)
        tracker.write(step)
        tracker.close()
    return json.loads((folder / FILE).read_text())["id"]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    known = twice("wandb", tmp_path)
    wanted = (b"reward/prior", b"eval/pass@1", b"sums", b"small", b"table-file")
    for _ in range(300):  # its own process may write a file's end after `finish` has returned
        written = sorted((tmp_path / "wandb").glob(f"offline-run-*-{known}*/run-*.wandb"))
        content = b"".join(path.read_bytes() for path in written)
        if all(text in content for text in wanted):
            break
        time.sleep(0.1)
    assert [text for text in wanted if text not in content] == []
    tables = [json.loads(p.read_bytes()) for p in (tmp_path / "wandb").rglob("*.table.json")]
    assert tables[0]["columns"] == list(COLUMNS)
    assert tables[0]["data"][0][-1] == TRACE.text


def test_mlflow_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    known = twice("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("sums")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["covrl.run"] == known
    assert "small" in run.data.tags
    assert run.data.params["training.steps"] == "2"
    history = client.get_metric_history(run.info.run_id, "reward/prior")
    assert [(m.step, m.value) for m in history] == [(1, -2.0), (2, -1.5)]
    assert run.data.metrics["eval/pass_1"] == 0.5
    assert [a.path for a in client.list_artifacts(run.info.run_id, "traces")] == ["traces/step-000001.json"]


def test_trackio_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is first imported
    pytest.importorskip("trackio")
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    twice("trackio", tmp_path)
    (name,) = storage.get_runs("sums")
    logs = storage.get_logs("sums", name)
    assert [(row["step"], row["reward/prior"]) for row in logs] == [(1, -2.0), (2, -1.5)]
    assert logs[1]["eval/pass@1"] == 0.5
