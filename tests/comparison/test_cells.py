"""What a cell is, its file, and which cells are missing."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_tasks import SETTINGS, outdated, recipe_config
from pydantic import TypeAdapter

import covrl
from covrl.comparison.cells import (
    COUNTING,
    Budget,
    Cell,
    Exam,
    Result,
    found,
    grid,
    missing,
    present_commit,
    read_results,
    write_result,
)
from covrl.comparison.methods import BASE, VARIANTS, settings_of
from covrl.errors import UserError

CELL = Cell("covrl", "rare", 1.5e-4, 0, Budget("steps", 100), Exam("test"))

CELLS = st.builds(
    Cell,
    st.sampled_from(["covrl", "covrl-shuffled", "w_reinforce"]),
    st.sampled_from(["rare", "common"]),
    st.sampled_from([1e-5, 1.5e-4, 0.00015000000000000001, 1e-4]),
    st.integers(0, 3),
    st.builds(Budget, st.sampled_from(["steps", "tokens"]), st.integers(1, 3)),
    st.builds(Exam, st.sampled_from(["dev", "test"]), st.integers(0, 2), st.none() | st.integers(1, 2)),
)


@given(CELLS, CELLS)
def test_the_file_s_name_tells_cells_apart(one: Cell, other: Cell) -> None:
    assert (one.file("abc") == other.file("abc")) == (one == other)
    assert one.file("abc") != one.file("abd")


@given(CELLS)
def test_a_record_gives_the_cell_back(cell: Cell) -> None:
    assert TypeAdapter(Cell).validate_json(json.dumps(asdict(cell))) == cell


def test_the_file_s_name() -> None:
    assert CELL.file("48e46e0d11") == "covrl__rare__lr0.00015__100steps__test-n8__seed0__48e46e0d11.json"


def test_a_grid_has_the_base_once_and_goes_seed_by_seed() -> None:
    cells = grid(["covrl", BASE, "grpo"], ["rare", "common"], [0, 1], Budget("steps", 9), Exam("dev"), [1e-4, 3e-4])
    assert len(cells) == len(set(cells)) == 2 + 2 * 2 * 2 * 2
    assert [c.setting for c in cells if c.method == BASE] == ["rare", "common"]
    assert [c.seed for c in cells[2:]] == [0] * 8 + [1] * 8
    assert {c.rate for c in cells[2:]} == {1e-4, 3e-4}


def test_results_are_written_whole_and_read_back(tmp_path: Path) -> None:
    path = write_result(tmp_path, CELL, "abc", {"steps": 3})
    assert path.name == CELL.file("abc")
    assert [(r.cell, r.commit, r.figures["steps"]) for r in read_results(tmp_path)] == [(CELL, "abc", 3)]
    assert read_results(tmp_path)[0].counted, "it says which counting it has"
    with pytest.raises(ValueError):
        write_result(tmp_path, replace(CELL, seed=1), "abc", {"loss": float("nan")})
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no half-written file stays"
    assert read_results(tmp_path / "nowhere") == []


@pytest.mark.parametrize("text", ["", "{}", '{"cell": 3}', '{"cell": {"method": "covrl"}, "commit": "a"}', "[1]"])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(UserError, match=r"odd\.json: not the result of a comparison"):
        read_results(tmp_path)


def test_missing_are_the_cells_without_a_result_of_the_commit() -> None:
    cells = [replace(CELL, seed=s) for s in range(3)]
    results = [
        Result(cells[1], "old", {"finished": "2026-01-01", "counting": COUNTING}),
        Result(cells[1], "new", {"finished": "2026-02-01", "counting": COUNTING}),
        Result(cells[2], "old", {"finished": "2026-01-01", "counting": COUNTING}),
        Result(replace(CELL, setting="common"), "new", {"counting": COUNTING}),
    ]
    everything = found(cells, results)
    assert {c.seed: r.commit for c, r in everything.items()} == {1: "new", 2: "old"}
    assert missing(cells, everything) == [cells[0]]
    assert missing([*cells, *cells], found(cells, results, "new")) == [cells[0], cells[2]]


def test_a_reported_training_whose_costs_another_code_made_is_outdated() -> None:
    old = {"finished": "2026-02-01"}  # results of the first counting hold no number of it
    base, dev = replace(CELL, method=BASE), replace(CELL, exam=Exam("dev"))
    assert [outdated(Result(cell, "old", old)) for cell in (CELL, base, dev)] == [True, False, False]
    assert not outdated(Result(CELL, "new", {"counting": COUNTING}))
    assert outdated(Result(CELL, "next", {"counting": COUNTING + 1}))


def test_every_variant_changes_the_recipe() -> None:
    plain = recipe_config(("algorithm.name=covrl",))
    for name in VARIANTS:
        assert recipe_config(settings_of(name)) != plain, name


def test_settings_name_shipped_bases() -> None:
    from covrl.models.model import resolve_path

    for name in SETTINGS:
        assert (Path(resolve_path(recipe_config((), name).model.path)) / "model.safetensors").is_file()


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_package_s_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "covrl"
    package.mkdir(parents=True)
    monkeypatch.setattr(covrl, "__file__", str(package / "__init__.py"))
    assert present_commit() == f"v{covrl.__version__}", "no checkout"
    git(tmp_path, "init", "-q")
    (tmp_path / "notes").write_text("")
    git(tmp_path, "add", "notes")
    git(tmp_path, "commit", "-qm", "notes")
    (package / "__init__.py").write_text("")
    assert present_commit() == f"v{covrl.__version__}", "a checkout that the package is no part of"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "package")
    head = git(tmp_path, "rev-parse", "--short=10", "HEAD")
    assert present_commit() == head
    (tmp_path / "notes").write_text("changed")
    assert present_commit() == head, "other files do not matter"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "results")
    assert present_commit() == head, "nor do commits of them"
    (package / "new.py").write_text("")
    assert present_commit() == f"{head}-dirty"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "code")
    assert present_commit() == git(tmp_path, "rev-parse", "--short=10", "HEAD") != head
