"""`covrl compare` as it is typed: lists, refusals, what is run, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Covrl
from comparison.results import result

from covrl.comparison import compare as module
from covrl.comparison.cells import Budget, Cell, Exam, write_result
from covrl.comparison.compare import ask_for, compare
from covrl.comparison.run import Failure

Typed = tuple[str, ...]


def asked(folder: Path, **changes: object) -> module.Comparison:
    typed: dict[str, object] = {
        "algorithms": "covrl, covrl-shuffled,covrl",
        "settings": "rare",
        "seeds": "0,1",
        "rates": "",
        "budget": "steps",
        "steps": 20,
        "tokens": 1000,
        "split": "test",
        "samples": 8,
        "problems": None,
        "folder": folder,
    }
    return ask_for(**typed | changes)  # ty: ignore[invalid-argument-type]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Stand-ins for the processes: each cell's result is made up, but the shuffled control's seed 1 fails."""
    ran: list[Cell] = []

    def run_cells(cells, out, say, **_):
        ran.extend(cells)
        for cell in cells:
            if (cell.method, cell.seed) != ("covrl-shuffled", 1):
                write_result(out, cell, "abc", dict(result(cell, 0.5 + cell.seed / 10).figures))
        return [Failure(c, "it broke") for c in cells if (c.method, c.seed) == ("covrl-shuffled", 1)]

    monkeypatch.setattr(module, "run_cells", run_cells)
    monkeypatch.setattr("covrl.comparison.methods.RATES", {})
    return ran


def test_only_what_is_missing_is_run_and_what_failed_is_said(tmp_path: Path, workers: list[Cell]) -> None:
    _, failed = compare(asked(tmp_path), "covrl compare …")
    assert [(c.method, c.seed) for c in workers] == [
        ("base", 0), ("covrl", 0), ("covrl-shuffled", 0), ("covrl", 1), ("covrl-shuffled", 1),
    ]  # fmt: skip
    assert list(failed.values()) == ["it broke"]
    text = (tmp_path / "compare.md").read_text()
    assert "Missing: covrl-shuffled, rare, rate 0.00015, seeds 1." in text
    assert "Failed: covrl-shuffled, rare, rate 0.00015, seed 1: it broke" in text
    assert (tmp_path / "compare.html").read_text().startswith("<!doctype html>")
    assert len(list((tmp_path / "raw").iterdir())) == 4

    workers.clear()
    compare(asked(tmp_path, seeds="0,1,2"), "again", name="more")
    assert [(c.method, c.seed) for c in workers] == [("covrl-shuffled", 1), ("covrl", 2), ("covrl-shuffled", 2)]
    assert (tmp_path / "more.md").is_file()
    assert asked(tmp_path, commit="other").missing() == asked(tmp_path).cells(), "another commit has none of them"
    assert asked(tmp_path, steps=21).missing()[0].budget == Budget("steps", 21)


def test_what_is_typed(tmp_path: Path) -> None:
    found = asked(tmp_path, rates="1e-4, 3e-4", budget="tokens", split="dev", problems=9)
    assert (found.methods, found.seeds, found.rates) == (("covrl", "covrl-shuffled"), (0, 1), (1e-4, 3e-4))
    assert (found.budget, found.exam) == (Budget("tokens", 1000), Exam("dev", 8, 9))
    assert len(found.cells()) == 1 + 2 * 2 * 2


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--algorithms", "covrl,covrll"), "unknown method 'covrll': did you mean covrl?"),
        (("--algorithms", ","), "--algorithms: expected a list such as a,b,c"),
        (("--settings", "often"), "unknown setting 'often'"),
        (("--seeds", "0,x"), "--seeds: 'x' is not a number"),
        (("--seeds", "0,-1"), "-1 is negative"),
        (("--rates", "1e-4,0"), "holds what is no learning rate"),
        (("--rates", "nan"), "holds what is no learning rate"),
        (("--budget", "hours"), "expected steps or tokens, found 'hours'"),
        (("--split", "train"), "expected dev or test, found 'train'"),
        (("--out", "/proc/nowhere"), "/proc/nowhere/raw: cannot write there"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, covrl: Covrl, typed: Typed, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = covrl("compare", "--algorithms", "covrl", *typed)
    assert found.code == 2
    last = found.err.strip().splitlines()[-1]
    assert last.startswith("covrl: ")
    assert said in last
    assert not list(tmp_path.iterdir())


def test_the_command_lists_runs_and_fails_where_a_cell_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, covrl: Covrl, workers: list[Cell]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = ("compare", "--algorithms", "covrl", "--settings", "rare", "--seeds", "0", "--out", "res")
    code, out, _ = covrl(*plain, "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["missing"] * 2
    assert not list(tmp_path.iterdir()), "listing writes nothing"
    code, out, _ = covrl(*plain)
    assert code == 0
    assert "res/compare.md" in out
    assert "covrl compare --algorithms covrl --settings rare" in (tmp_path / "res/compare.md").read_text()
    code, out, _ = covrl(*plain, "--list")
    assert code == 0
    assert "done abc" in out
    assert covrl(*plain, "--algorithms", "covrl-shuffled", "--seeds", "1").code == 1
    (tmp_path / "res/raw/odd.json").write_text(json.dumps({"a": 1}))
    assert covrl(*plain).code == 2
