"""Two processes at a time, resumed where it was cut, failures reported; with a stand-in for the worker."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from own_tasks import orders

from covrl.comparison.cells import Budget, Cell, Exam, read_results
from covrl.comparison.run import Failure, run_cells, worker_command
from covrl.errors import UserError
from covrl.files import alone_in

CELLS = [Cell("covrl", "rare", 1.5e-4, seed, Budget("steps", 1), Exam("dev", 1, 4)) for seed in range(5)]

STAND_IN = """
import json, os, pathlib, sys, time
order = json.load(open(sys.argv[1]))
cell, out = order["cells"][0], pathlib.Path(order["out"])
alive = out.parent / "alive"
alive.mkdir(exist_ok=True)
mine = alive / str(cell["seed"])
mine.touch()
with open(out.parent / "log", "a") as log:
    print(cell["seed"], len(list(alive.iterdir())), os.environ["OMP_NUM_THREADS"], file=log)
if cell["seed"] == 9:
    time.sleep(600)
mine.unlink()
if cell["seed"] == 1:
    print("some progress\\nTraceback\\nValueError: it broke\\n\\n", file=sys.stderr)
    sys.exit(1)
(out / f"{cell['seed']}.json").write_text(json.dumps({"cell": cell, "commit": "abc"}))
"""


def stand_in(order: Path) -> list[str]:
    return [sys.executable, "-c", STAND_IN, str(order)]


def log(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def test_every_cell_runs_two_at_a_time_and_a_failure_stops_no_other(tmp_path: Path) -> None:
    said: list[str] = []
    failures = run_cells(orders(CELLS, tmp_path / "raw"), tmp_path / "raw", said.append, stand_in)
    assert failures == [Failure(CELLS[1], "ValueError: it broke")]
    assert sorted(r.cell.seed for r in read_results(tmp_path / "raw")) == [0, 2, 3, 4]
    assert sorted(int(seed) for seed, _, _ in log(tmp_path)) == [0, 1, 2, 3, 4]
    assert all(int(alive) <= 2 for _, alive, _ in log(tmp_path))
    assert {threads for _, _, threads in log(tmp_path)} == {"1"}
    assert len(said) == 5
    assert any("seed 1: failed: ValueError: it broke" in text for text in said)
    assert said[-1].endswith("0 to go")


def test_an_interruption_ends_the_processes_and_keeps_what_is_done(tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    endless = replace(CELLS[0], seed=9)
    with pytest.raises(KeyboardInterrupt):
        run_cells(orders([endless, CELLS[0]], tmp_path / "raw"), tmp_path / "raw", interrupt, stand_in)
    assert [r.cell.seed for r in read_results(tmp_path / "raw")] == [0]
    assert run_cells([], tmp_path / "raw") == [], "the folder is free again"


def test_a_process_that_is_killed_is_a_failure(tmp_path: Path) -> None:
    def suicide(order: Path) -> list[str]:
        return [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]

    assert (
        run_cells(orders(CELLS[:1], tmp_path), tmp_path, command=suicide)[0].reason
        == "nothing on standard error (signal 9)"
    )


def test_two_comparisons_do_not_share_a_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path, lock="."), pytest.raises(UserError, match="a comparison is going on in this folder"):
        run_cells(orders(CELLS, tmp_path), tmp_path, command=stand_in)
    assert list(tmp_path.iterdir()) == [], "the lock leaves nothing behind"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write there"):
        run_cells([], tmp_path / "file", command=stand_in)


def test_the_real_worker_writes_a_result_or_says_why_not(tmp_path: Path) -> None:
    base = Cell("base", "rare", 0.0, 0, Budget("steps", 0), Exam("dev", 1, 4))
    odd = replace(CELLS[0], method="no-such-method")
    failures = run_cells(orders([base, odd], tmp_path), tmp_path)
    assert [(f.cell, "unknown method 'no-such-method'" in f.reason) for f in failures] == [(odd, True)]
    (result,) = read_results(tmp_path)
    assert result.cell == base
    assert [p.name for p in tmp_path.iterdir()] == [base.file(result.commit)]
    assert len(result.figures["curve"]) == 1


def test_the_worker_s_command_is_this_interpreter_s() -> None:
    assert worker_command(Path("x.json")) == [sys.executable, "-m", "covrl.comparison.worker", "x.json"]
    assert os.path.isabs(sys.executable)
