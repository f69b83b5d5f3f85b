"""Runs that are killed at chosen moments, resumed, and compared byte for byte with one that was not.

The killed processes are real and get real signals; see kill_driver.py for the moments and kill_cases.py for the runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from kill_cases import CASES, Driver, contents, difference, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    write_project(folder)
    return folder


@pytest.fixture(scope="module")
def covrl() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def passes(project: Path, covrl: Driver) -> dict[str, dict[str, int]]:
    """How often each case passes each moment when nothing happens to it."""
    found = {}
    for name in CASES:
        answer = covrl(project, "train", "--config", f"{name}.toml", "--out", f"whole-{name}")
        assert answer["exit"] == 0, answer["said"]
        found[name] = answer["passes"]
    return found


@pytest.fixture(scope="module")
def whole(project: Path, passes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each case leaves when nothing happens to it."""
    return {name: contents(project / f"whole-{name}") for name in passes}


def test_two_cases_are_not_the_same_and_a_changed_byte_is_seen(project: Path, whole: dict[str, Any]) -> None:
    assert difference(whole["covrl"], whole["nover"]) is not None
    changed = dict(whole["covrl"])
    name = "checkpoints/step-000004/optimizer.safetensors"
    changed[name] = changed[name][:-1] + bytes([changed[name][-1] ^ 1])
    assert difference(whole["covrl"], changed) == name
    assert len(whole["grpo"]["metrics.jsonl"]) == 4


ANY = -1

# Run, moment, which pass of it (-1: the last one), and the newest checkpoint that there is then. When folders are moved
# and deleted depends on when the best model changes, which rounding decides: it is then ANY.
KILLS = [
    ("covrl", "step boundary", 1, None),
    ("covrl", "inside an accumulation", 1, None),
    ("covrl", "inside an accumulation", -1, 2),
    ("covrl", "after a gradient", 3, 2),
    ("covrl", "step done, nothing written", 4, 2),
    ("covrl", "inside an evaluation", 3, 2),
    ("covrl", "inside a line", 7, 2),
    ("covrl", "inside a deletion", 1, ANY),
    *[("rlpr", "step boundary", step, step // 2 * 2 or None) for step in (1, 2, 3, 4)],
    ("nover", "inside a deletion", -1, ANY),
    ("rlpr", "between rollout and update", 4, 2),
    ("rlpr", "between two updates", 4, 4),
    ("grpo", "between two updates", 10, 2),
    ("nover", "before the copies follow", 4, 2),
    ("nover", "inside a checkpoint's files", 2, 2),
    ("nover", "after a move", 1, None),
    ("nover", "before a rename", -1, ANY),
]


@pytest.mark.parametrize(("case", "point", "at", "newest"), KILLS)
def test_a_killed_run_ends_with_the_same_bytes(
    project: Path,
    covrl: Driver,
    passes: dict[str, Any],
    whole: dict[str, Any],
    case: str,
    point: str,
    at: int,
    newest: int | None,
) -> None:
    at = passes[case][point] if at == -1 else at
    run = f"{case}-{point.replace(' ', '-')}-{at}"
    killed = covrl(project, "train", "--config", f"{case}.toml", "--out", run, point=point, at=at)
    assert killed["exit"] == -signal.SIGKILL, killed
    assert not (project / run / "report.html").exists(), "it was killed before its end"
    there = sorted(p.name for p in (project / run / "checkpoints").glob("step-*"))
    if newest != ANY:
        assert there[-1:] == ([f"step-{newest:06d}"] if newest else [])
    resumed = covrl(project, "train", "--resume", run)
    assert resumed["exit"] == 0, resumed["said"]
    assert difference(whole[case], contents(project / run)) is None


@pytest.mark.parametrize(
    ("case", "point", "at", "step"),
    [
        ("rlpr", "before sampling", 1, 0),
        ("rlpr", "inside a checkpoint's files", 1, 2),
        ("covrl", "inside an accumulation", 1, 0),
    ],
)
def test_a_terminated_run_leaves_a_checkpoint_and_ends_with_the_same_bytes(
    project: Path, covrl: Driver, whole: dict[str, Any], case: str, point: str, at: int, step: int
) -> None:
    run = f"terminated {point}"
    arguments = ("train", "--config", f"{case}.toml", "--out", run)
    ended = covrl(project, *arguments, point=point, at=at, number=signal.SIGTERM)
    assert ended["exit"] == 130, ended
    assert "SIGTERM: stopping before the next pass" in ended["said"]
    assert f"checkpoints/step-{step:06d}/state.json" in contents(project / run)
    assert covrl(project, "train", "--resume", run)["exit"] == 0
    found = contents(project / run)
    assert difference(_newest(whole[case], CASES[case][1]), _newest(found, CASES[case][1])) is None


def _newest(found: dict[str, Any], steps: int) -> dict[str, Any]:
    """Without the older checkpoints: an extra one, of where the run was terminated, leads to others being kept."""
    return {k: v for k, v in found.items() if not k.startswith("checkpoints/") or f"step-{steps:06d}" in k}


def test_the_command_line_in_a_process_of_its_own_resumes_a_run_that_was_killed_twice(
    project: Path, covrl: Driver, whole: dict[str, Any]
) -> None:
    first = covrl(project, "train", "--config", "nover.toml", "--out", "twice", point="after the update", at=3)
    second = covrl(project, "train", "--resume", "twice", point="before a manifest", at=2)
    assert (first["exit"], second["exit"]) == (-signal.SIGKILL, -signal.SIGKILL)
    command = [sys.executable, "-m", "covrl", "train", "--resume", "twice"]
    done = subprocess.run(
        command, cwd=project, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert difference(whole["nover"], contents(project / "twice")) is None
    again = covrl(project, "train", "--resume", "twice")
    assert "all 5 steps are done; there is nothing left to resume" in again["said"]


HANGING = """
import ctypes

from covrl.generation.engine import TorchGenerator

def hang(*_):
    ctypes.PyDLL(None).sleep(60)  # in C, with the interpreter's lock

TorchGenerator.generate = hang

def reward(problem, text):
    return 0.0
"""


def test_a_step_of_the_real_command_that_hangs_ends_with_its_stack(project: Path) -> None:
    (project / "hanging.py").write_text(HANGING)
    settings = ["guards.step_deadline_s=1", "guards.publish_check_every=0"]
    command = [sys.executable, "-m", "covrl", "train", "--config", "covrl.toml", "--out", "hung"]
    command += ["--reward", "hanging:reward", *[part for text in settings for part in ("--set", text)]]
    path = os.pathsep.join([str(project), *map(os.path.abspath, sys.path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    (file,) = (project / "hung").glob("hung-*.txt")
    for text in (file.read_text(), done.stderr):
        assert "step 1 was not done after 1 s; all threads at" in text
        assert 'hanging.py", line 7 in hang' in text
        assert "in train_run" in text
    assert done.stderr.strip().splitlines()[-1].startswith("covrl: step 1 hung: it was not done after guards.step")


NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "-o", "size=1m", "covrl", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_mount(), reason="this system lets no user mount a tmpfs")
@pytest.mark.parametrize("share", [0.2, 0.7, 0.95])
def test_a_full_disk_is_one_line_and_costs_nothing(
    project: Path, whole: dict[str, Any], tmp_path: Path, share: float
) -> None:
    """A tmpfs that holds a share of the finished run; then it grows, is read-only for a while, and the run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(-(-len(v) // 4096) * 4096 for k, v in whole["nover"].items() if isinstance(v, bytes))
    options = f"size={int(share * size)}"
    mount = f'mount -t tmpfs -o {options} covrl "{disk}" && exec "$0" "$@"'
    covrl = Driver([*NAMESPACE, "sh", "-c", mount])
    try:
        full = covrl(project, "train", "--config", "nover.toml", "--out", str(disk / "run"))
        assert full["exit"] == 1, full["said"]
        last = full["said"].strip().splitlines()[-1]
        assert last.startswith("covrl: ")
        assert "cannot write there after step" in last
        assert "No space left on device" in last
        assert "Traceback" not in full["said"]
        covrl.shell("mount", "-o", "remount,ro,size=100m", str(disk))
        refused = covrl(project, "train", "--resume", str(disk / "run"))
        assert refused["exit"] == 2
        assert "cannot write there: Read-only file system" in refused["said"]
        covrl.shell("mount", "-o", "remount,rw", str(disk))
        resumed = covrl(project, "train", "--resume", str(disk / "run"))
        assert resumed["exit"] == 0, resumed["said"]
        covrl.shell("cp", "-a", str(disk / "run"), str(tmp_path / "out"))
    finally:
        covrl.close()
    found = contents(tmp_path / "out")
    assert difference(whole["nover"], found) is None
