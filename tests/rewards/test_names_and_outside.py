"""Verifiers by name: ours with parameters, reasoning-gym's scorers, and a user's function."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from covrl.config import EvaluationConfig, RewardsConfig, check
from covrl.errors import UserError
from covrl.evaluation.grade import GradeSummary, grade_file
from covrl.records import Problem
from covrl.rewards.graders import make_grader
from covrl.rewards.names import parse_name
from covrl.rewards.outside import GymVerifier, UserVerifier
from covrl.rewards.registry import make_verifier, open_verifier
from covrl.rewards.user_worker import checked


def test_parameters_follow_a_name() -> None:
    named = parse_name("numeric,relative=0.01,absolute=0")
    assert (named.base, named.values, named.set_values) == (
        "numeric",
        {"relative": 0.01, "absolute": 0.0},
        {"relative", "absolute"},
    )
    assert parse_name("code,seconds=9").values == {"seconds": 9.0, "memory_mb": 1024.0, "allow_unisolated": 0.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "unknown verifier maths: did you mean math?"),
        ("xyz", "unknown verifier xyz: known are exact, text, math, numeric, choice, countdown, code, reasoning-gym"),
        ("numeric,relativ=1", "verifier numeric has no parameter 'relativ': it takes relative, absolute"),
        ("text,seconds=1", "verifier text has no parameter 'seconds': it takes none"),
        ("math,seconds=0", "verifier math: seconds must be a number above 0, found '0'"),
        ("numeric,absolute=-1", "absolute must be a number from 0, found '-1'"),
        ("numeric,absolute=nan", "must be a number from 0, found 'nan'"),
        ("mine:verify", "covrl grade --verifier mine:verify"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_verifier(name)
    assert message in str(caught.value)
    for config in (EvaluationConfig, RewardsConfig):
        with pytest.raises(UserError) as caught:
            check(config, {"verifier": name})
        assert "setting verifier: " in str(caught.value)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "name", ["none", "exact", "text", "math", "numeric", "choice", "countdown", "code,seconds=2", "reasoning-gym"]
)
def test_every_name_is_a_setting(name: str) -> None:
    assert check(RewardsConfig, {"verifier": name}).verifier == name


def test_graders_by_name() -> None:
    assert make_grader("none") is None
    grade = make_grader("numeric,absolute=1")
    assert grade is not None
    assert grade([(Problem("p", "?", "5"), " 6 "), (Problem("p", "?", "5"), "7")]) == ["right", "wrong"]


# reasoning-gym


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covrl.rewards.outside.find_spec", lambda _: None)
    with pytest.raises(UserError, match="the verifier reasoning-gym is not installed: pip install 'reasoning-gym"):
        make_verifier("reasoning-gym")


def test_reasoning_gyms_own_scorers() -> None:
    gym = pytest.importorskip("reasoning_gym")
    sums = gym.create_dataset("chain_sum", size=1, seed=1)[0]
    count = gym.create_dataset("countdown", size=1, seed=1)[0]
    numbers = count["metadata"]["numbers"]

    def problem(entry: dict[str, object]) -> Problem:
        return Problem("p", str(entry["question"]), str(entry["answer"]), (json.dumps(entry),))

    rows = [
        (problem(sums), f"#### {sums['answer']}"),
        (problem(sums), "#### 123456"),
        (problem(count), f"<answer>{count['answer']}</answer>"),
        (problem(count), f"<answer>0 + {count['answer']}</answer>"),
        (problem(count), f"<answer>{numbers[0]} + {numbers[1]}</answer>"),
        (problem(count), "<answer>" + "(" * 3000 + "</answer>"),
        (Problem("p", "", "5"), "#### 5"),
        (Problem("p", "", "5", ('{"metadata": {"source_dataset": "no such"}}',)), "#### 5"),
        (problem(sums), "no idea"),
    ]
    with open_verifier("reasoning-gym") as verifier:
        assert isinstance(verifier, GymVerifier)
        judged = verifier.judge_all(rows)
    assert [j.verdict for j in judged][:3] == ["right", "wrong", "right"]
    assert judged[4].why.startswith("score of reasoning-gym: 0")
    assert all(j.verdict != "right" for j in judged[3:])
    assert judged[6].why == "the problem has no reasoning-gym entry"
    assert judged[7].why.startswith("no scorer: no such")
    assert judged[8].why.startswith("no answer found")


STAND_IN = """
def get_score_answer_fn(task):
    if task == "none":
        raise ValueError(task)
    def score(answer, entry):
        if answer == "raise":
            raise KeyError(answer)
        if answer == "hang":
            while True: pass
        return {"nan": float("nan"), "half": 0.5}.get(answer, float(answer == entry["answer"]))
    return score
"""


def test_what_is_made_of_a_scorers_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the extra, so that this runs where it is not installed; the scorers themselves run above."""
    (tmp_path / "reasoning_gym.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))

    def problem(task: str) -> Problem:
        return Problem("p", "", "7", (json.dumps({"answer": "7", "metadata": {"source_dataset": task}}),))

    said = ["7", "8", "half", "nan", "raise", "hang", "7"]
    with open_verifier("reasoning-gym,seconds=1", ("none",)) as verifier:
        judged = verifier.judge_all([*((problem("sum"), text) for text in said), (problem("none"), "7")])  # ty: ignore
    verdicts = ["right", "wrong", "wrong", "unknown", "unknown", "unknown", "right", "unknown"]
    assert [j.verdict for j in judged] == verdicts
    assert judged[2].why == "score of reasoning-gym: 0.5"
    assert judged[4].why == "the scorer failed: KeyError"
    assert judged[5].why.startswith("time limit")
    assert judged[7].why == "no scorer: none: ValueError"


# A user's function

MINE = """
import os
from covrl.records import Problem

def verify(problem, response):
    assert isinstance(problem, Problem) and isinstance(problem.accepted, tuple)
    if "hang" in response:
        while True: pass
    if "die" in response:
        os.abort()
    if "raise" in response:
        raise KeyError("oops")
    print("noise")
    return problem.answer in response, "looked for it"

def wrong(problem, response):
    return 0.7

number = 5
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_verifiers.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_verifiers"


def test_a_users_function_judges_in_a_worker(mine: str) -> None:
    rows = [(Problem("p", "?", "5", ("6",)), r) for r in ("5", "7", "raise", "die", "hang", "so 5")]
    with open_verifier(f"{mine}:verify,seconds=0.5", code=True) as verifier:
        assert isinstance(verifier, UserVerifier)
        judged = verifier.judge_all(rows)
    assert [j.verdict for j in judged] == ["right", "wrong", "unknown", "unknown", "unknown", "right"]
    assert judged[0].why == "looked for it"
    assert judged[2].why == "the verifier raised KeyError: 'oops'"
    assert judged[3].why == "worker died: signal SIGABRT"
    assert judged[4].why.startswith("time limit")


def test_what_a_users_function_may_give() -> None:
    assert checked(True, "w") == ["right", "by the user's verifier"]
    assert checked(("unknown", "blurred"), "w") == ["unknown", "blurred"]
    for given in (None, 1.0, "yes", ("right", 5), []):
        assert checked(given, "w")[0] == "error"


def test_code_that_is_no_verifier_is_a_users_error(mine: str) -> None:
    out = io.StringIO()
    path = Path(mine + ".jsonl")
    with pytest.raises(UserError, match=f"verifier {mine}:wrong: problem .* line 1: gave 0.7; it must give right"):
        _grade(path, f"{mine}:wrong", out)
    with pytest.raises(UserError, match="is of type int, not a function"):
        make_verifier(f"{mine}:number", code=True)
    with pytest.raises(UserError, match="cannot import 'my_verifiers:none'"):
        make_verifier(f"{mine}:none", code=True)


def test_grade_takes_module_and_function(mine: str) -> None:
    out = io.StringIO()
    assert _grade(Path("rows.jsonl"), f"{mine}:verify", out).counts == {"right": 1, "wrong": 0, "unknown": 0}


def _grade(path: Path, verifier: str, out: io.StringIO) -> GradeSummary:
    folder = Path(sys.path[0])
    (folder / path).write_text('{"answer": "5", "response": "5"}\n')
    return grade_file(str(folder / path), out, verifier)
