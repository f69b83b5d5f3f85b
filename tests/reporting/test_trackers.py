from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from covrl.config import RunConfig, check
from covrl.errors import UserError
from covrl.records import Problem, StepReport, TraceGroup, TraceView
from covrl.reporting.trackers import COLUMNS, FILE, IN_A_BATCH, make_trackers

TRACES = (
    TraceView("prior", "2 + 2 is 4</think>", "closed", -0.25, 1.5, None, "right", index=0),
    TraceView("prior", "hm", "length", float("nan"), -1.5, None, index=1),
)
REPORT = StepReport(3, {"reward/prior": -1.5, "leak/excess": float("nan")})
SHOWN = StepReport(2, {"reward/prior": -2.0}, groups=(TraceGroup(Problem("p", "2 + 2", "4"), TRACES),))
ROWS = [
    ["p", "2 + 2", "4", 0, "prior", "closed", "right", -0.25, 1.5, "2 + 2 is 4</think>"],
    ["p", "2 + 2", "4", 1, "prior", "length", None, None, -1.5, "hm"],
]


def config(*trackers: str, steps: int = 3, **report: Any) -> RunConfig:
    table = {"trackers": trackers, **report}
    return check(RunConfig, {"model": {"path": "m"}, "training": {"steps": steps}, "report": table})


class WandB:
    """The part of wandb that is used: a run of an id is one run, and steps that are behind are not taken."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.begun: list[dict[str, Any]] = []
        self.finished = 0

    def init(
        self, *, project: str, name: str, id: str, resume: str, tags: list[str], config: dict[str, Any]
    ) -> SimpleNamespace:
        assert resume == "allow"
        self.begun.append({"project": project, "name": name, "id": id, "tags": tags, "config": config})
        lines = self.runs.setdefault(id, [])

        def log(metrics: dict[str, Any], step: int) -> None:
            if not lines or step > lines[-1][0]:
                lines.append((step, metrics))

        def finish() -> None:
            self.finished += 1

        return SimpleNamespace(log=log, finish=finish)

    @staticmethod
    def Table(*, columns: list[str], data: list[list[Any]]) -> SimpleNamespace:
        assert all(len(row) == len(columns) for row in data)
        return SimpleNamespace(columns=columns, data=data)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> WandB:
    fake = WandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_settings_tags_finite_metrics_and_traces(wandb: WandB, tmp_path: Path) -> None:
    settings = config("wandb", tracker_project="sums", tracker_tags=("first", "small"))
    (tracker,) = make_trackers(settings, tmp_path)
    tracker.write(SHOWN)
    tracker.write(REPORT)
    tracker.close()
    (begun,) = wandb.begun
    assert (begun["project"], begun["name"], begun["tags"]) == ("sums", tmp_path.name, ["first", "small"])
    assert begun["config"]["training"]["steps"] == 3
    ((_, first), last) = wandb.runs[begun["id"]]
    assert first["traces"].columns == list(COLUMNS)
    assert first["traces"].data == ROWS
    assert last == (3, {"reward/prior": -1.5})
    assert wandb.finished == 1


def test_a_resume_goes_on_with_the_same_wandb_run(wandb: WandB, tmp_path: Path) -> None:
    """Killed without a close after step 3, resumed from a checkpoint of step 2: one run, each step once."""
    (tracker,) = make_trackers(config("wandb"), tmp_path)
    for step in (1, 2, 3):
        tracker.write(StepReport(step, {"reward/prior": float(step)}))
    (again,) = make_trackers(config("wandb", tracker_project="other", tracker_name="other"), tmp_path)
    for step in (3, 4):
        again.write(StepReport(step, {"reward/prior": float(step)}))
    (lines,) = wandb.runs.values()
    assert [step for step, _ in lines] == [1, 2, 3, 4]
    assert [(b["project"], b["name"]) for b in wandb.begun] == [("covrl", tmp_path.name)] * 2, "it stays where it is"


def test_runs_of_two_folders_are_two(wandb: WandB, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_trackers(config("wandb", tracker_name="same"), tmp_path / name)
    assert len(wandb.runs) == 2


def test_the_id_is_kept_before_a_tracker_hears_of_it(
    wandb: WandB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill inside ``init``, after the service made its run, does not lead to a second one."""
    monkeypatch.setenv("WANDB_API_KEY", "planted-1234567")

    def killed(**options: Any) -> None:
        wandb.runs.setdefault(options["id"], [])
        raise ConnectionError("no route for planted-1234567\nmore")

    monkeypatch.setattr(wandb, "init", killed)
    with pytest.raises(
        UserError, match=r"^report.trackers: wandb cannot begin its run: no route for \[WANDB_API_KEY\]$"
    ):
        make_trackers(config("wandb"), tmp_path)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    make_trackers(config("wandb"), tmp_path)
    assert len(wandb.runs) == 1


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"id": "../x", "project": "p", "name": "n", "begun": []}'])
def test_a_damaged_file_is_one_line(wandb: WandB, tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=rf"{FILE}: .*; remove it, and trackers open a new run"):
        make_trackers(config("wandb"), tmp_path)


def test_trackio_goes_on_by_name_and_never_takes_anothers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[object] = []
    run = SimpleNamespace(log=lambda metrics, step: logged.append((metrics, step)), finish=lambda: logged.append("end"))

    def init(*, project: str, name: str, resume: str, config: dict[str, Any]) -> SimpleNamespace:
        begun.append({"project": project, "name": name, "resume": resume})
        return run

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    for _ in range(2):
        (tracker,) = make_trackers(config("trackio", tracker_name="sums"), tmp_path)
        tracker.write(SHOWN)
        tracker.close()
    first = {"project": "covrl", "name": "sums"}
    assert begun == [first | {"resume": "never"}, first | {"resume": "allow"}]
    assert logged == [({"reward/prior": -2.0}, 2), "end"] * 2


class MlflowServer:
    """The part of mlflow's client that is used, with the rules of its server."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, SimpleNamespace] = {}
        self.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: (key, value, step), Param=lambda key, value: (key, value)
        )

    def MlflowClient(self) -> MlflowServer:
        return self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def search_runs(self, experiments: list[str], query: str, max_results: int) -> list[SimpleNamespace]:
        wanted = query.removeprefix("tags.`covrl.run` = '").removesuffix("'")
        found = [r for r in self.runs.values() if r.experiment in experiments and r.tags["covrl.run"] == wanted]
        return found[:max_results]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        name = f"r{len(self.runs)}"
        self.runs[name] = SimpleNamespace(
            info=SimpleNamespace(run_id=name),
            data=SimpleNamespace(params={}),
            experiment=experiment,
            tags=tags,
            name=run_name,
            status="RUNNING",
            metrics=[],
            files={},
        )
        return self.runs[name]

    def update_run(self, run: str, status: str) -> None:
        self.runs[run].status = status

    def set_terminated(self, run: str, status: str) -> None:
        self.runs[run].status = status

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        assert 0 < len(metrics) + len(params) <= 100
        for key, value in params:
            assert key not in self.runs[run].data.params, f"{key} cannot be changed"
            assert len(value) <= 500
            self.runs[run].data.params[key] = value
        self.runs[run].metrics += metrics

    def log_dict(self, run: str, content: dict[str, Any], file: str) -> None:
        self.runs[run].files[file] = json.loads(json.dumps(content, allow_nan=False))


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    fake = MlflowServer()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_mlflow_gets_settings_tags_metrics_and_traces(mlflow: MlflowServer, tmp_path: Path) -> None:
    many = {f"pass@{i}": float(i) for i in range(IN_A_BATCH)}
    (tracker,) = make_trackers(config("mlflow", tracker_project="sums", tracker_tags=("small",)), tmp_path)
    (run,) = mlflow.runs.values()
    tracker.write(SHOWN)
    tracker.write(StepReport(3, REPORT.metrics | many))
    tracker.close()
    assert mlflow.experiments == {"sums": run.experiment}
    assert (run.name, run.tags["small"], run.status) == (tmp_path.name, "", "FINISHED")
    assert run.data.params["training.steps"] == "3"
    assert run.files["settings.json"]["model"]["path"] == "m"
    assert run.files["traces/step-000002.json"] == {"columns": list(COLUMNS), "data": ROWS}
    assert ("reward/prior", -2.0, 2) in run.metrics
    assert ("pass_7", 7.0, 3) in run.metrics
    assert len(run.metrics) == 2 + IN_A_BATCH


def test_a_resume_goes_on_with_the_same_mlflow_run(mlflow: MlflowServer, tmp_path: Path) -> None:
    (tracker,) = make_trackers(config("mlflow", steps=4), tmp_path)
    tracker.write(REPORT)
    tracker.close()
    (run,) = mlflow.runs.values()
    assert run.status == "KILLED", "of 4 steps 3 are done"
    (tracker,) = make_trackers(config("mlflow", steps=5), tmp_path)
    assert run.status == "RUNNING"
    tracker.write(StepReport(5, {"reward/prior": 0.0}))
    tracker.close()
    assert len(mlflow.runs) == 1
    assert run.status == "FINISHED"
    assert run.files["settings.json"]["training"]["steps"] == 5, "the parameter stays what it was first"


def test_all_trackers_of_a_run_have_one_id(wandb: WandB, mlflow: MlflowServer, tmp_path: Path) -> None:
    make_trackers(config("wandb", "mlflow"), tmp_path)
    kept = json.loads((tmp_path / FILE).read_text())
    assert kept["begun"] == ["wandb", "mlflow"]
    assert Counter([*wandb.runs, *(r.tags["covrl.run"] for r in mlflow.runs.values())]) == {kept["id"]: 2}


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra is not installed")
    (tracker,) = make_trackers(config("tensorboard"), tmp_path)
    tracker.write(REPORT)
    tracker.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"reward/prior" in events.read_bytes()
    assert b"training reward and held-out accuracy" in events.read_bytes(), "both in one chart"


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="is not installed: pip install 'wandb"):
        make_trackers(config("wandb"), tmp_path)
