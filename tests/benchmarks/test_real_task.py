"""The word problems of `make real`: right answers, no problem in two files, nothing supervised of the trained size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[2] / "benchmarks/real"
sys.path.append(str(REAL))

import several_steps  # noqa: E402  # ty: ignore[unresolved-import]


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, str]]]:
    return several_steps.splits()


def by_hand(question: str) -> int:
    """What is left, read from the question's own words."""
    begin = int(re.findall(r"has (\d+)", question)[0])
    return begin + sum(
        int(n) * (1 if verb == "gets" else -1) for verb, n in re.findall(r"(gets|loses) (\d+)", question)
    )


def test_every_answer_is_right_and_every_step_of_a_solution_is_true(splits: dict[str, list[dict[str, str]]]) -> None:
    for row in (row for rows in splits.values() for row in rows):
        assert int(row["answer"]) == by_hand(row["question"])
        assert 0 <= int(row["answer"]) <= several_steps.LIMIT
    for row in splits["taught"]:
        steps = re.findall(r"(\d+)([+-])(\d+)=(\d+)\n", row["solution"])
        for a, sign, b, found in steps:
            assert int(a) + (int(b) if sign == "+" else -int(b)) == int(found)
        assert steps[-1][-1] == row["answer"]
        assert all(before[-1] == after[0] for before, after in pairwise(steps))


def test_no_question_is_in_two_files_and_sizes_are_kept_apart(splits: dict[str, list[dict[str, str]]]) -> None:
    questions = [row["question"] for rows in splits.values() for row in rows]
    assert len(set(questions)) == len(questions) == sum(count for _, count in several_steps.FILES.values())
    for name, (sizes, count) in several_steps.FILES.items():
        assert len(splits[name]) == count
        assert {row["question"].count("Then") for row in splits[name]} == set(sizes)
        assert all(("solution" in row) == (name == "taught") for row in splits[name])


def test_the_same_seed_gives_the_same_problems_and_the_command_writes_them(tmp_path: Path) -> None:
    assert several_steps.splits() == several_steps.splits()
    assert several_steps.splits(1)["test"] != several_steps.splits()["test"]
    subprocess.run([sys.executable, str(REAL / "several_steps.py"), str(tmp_path)], check=True)
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == several_steps.splits()["test"]


def test_both_settings_ask_alike() -> None:
    """The model is taught under the words that it is trained and measured under."""
    from covrl.config import RunConfig, check, read_toml

    taught, trained = (check(RunConfig, read_toml(REAL / name)) for name in ("format.toml", "train.toml"))
    assert taught.prompts == trained.prompts
    assert taught.generation == trained.generation
