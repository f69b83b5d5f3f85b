"""`covrl calibrate`: AUC by enumeration, reliability, and the sentence."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from commands import Covrl
from hypothesis import given
from hypothesis import strategies as st
from models import save_tiny
from projects import PROMPTS, write_rows

from covrl.evaluation.calibration import Marked, auc, auc_within, calibration, conclusion, reliability, tenths

SCORED = st.lists(st.tuples(st.sampled_from([-3.0, -2.0, -1.0, 0.0]), st.booleans()), max_size=12)


@given(SCORED)
def test_auc_is_the_share_of_pairs_in_order(scored: list[tuple[float, bool]]) -> None:
    pairs = [(a, b) for a, right in scored if right for b, wrong in scored if not wrong]
    expected = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs) if pairs else None
    found = auc(scored)
    assert (found is None) == (expected is None)
    assert found is None or found == pytest.approx(expected)


def marked(problem: int, log_prob: float, right: bool) -> Marked:
    return Marked(str(problem), log_prob, 2, "right", log_prob, "right" if right else "wrong")


def test_easy_questions_raise_the_whole_auc_and_not_the_one_within() -> None:
    """Each question has one likelihood for all its traces: nothing is known within, much over all."""
    rows = [marked(q, -0.1 if q % 2 else -5.0, i < (3 if q % 2 else 1)) for q in range(40) for i in range(4)]
    record = calibration(rows, 200)
    assert record["auc_within"] == 0.5
    assert record["auc"] == pytest.approx(0.75)
    assert record["closed"] == 160 / 200
    assert "cannot be trusted here" in record["sentence"]


def test_reliability_of_a_calibrated_model() -> None:
    rng = random.Random(0)
    rows = []
    for i in range(20_000):
        p = rng.random()
        sampled = "right" if rng.random() < p else "wrong"
        rows.append(Marked(str(i // 20), math.log(p), 1, sampled, p, "right" if rng.random() < p else "wrong"))
    record = calibration(rows, len(rows))
    assert record["sampled"]["ece"] < 0.02
    assert record["sampled"]["brier"] == pytest.approx(1 / 6, abs=0.01)
    assert [b["count"] > 1500 for b in record["reliability"]] == [True] * 10
    for b in record["reliability"]:
        assert b["from"] <= b["p"] <= b["to"]
        assert b["right"] == pytest.approx(b["p"], abs=0.04)
        assert b["interval"][0] < b["right"] < b["interval"][1]
    assert sum(b["count"] for b in record["by_log_prob"]) == len(rows)
    assert record["auc_within"] == pytest.approx(5 / 6, abs=0.02)  # of p uniform and right with p
    assert "can be trusted here" in record["sentence"]


def test_a_probability_of_one_is_in_the_last_bin() -> None:
    (only,) = reliability([(1.0, True)])
    assert (only["from"], only["to"], only["count"]) == (0.9, 1.0, 1)


def test_tenths_of_few_traces() -> None:
    found = tenths([(-float(i), False) for i in range(3)])
    assert [b["count"] for b in found] == [1, 1, 1]
    assert [b["from"] for b in found] == [-2.0, -1.0, 0.0]


def test_unknown_answers_are_left_out_and_counted() -> None:
    rows = [Marked("a", -1.0, 1, "right", -1.0, own) for own in ("unknown", "right", "wrong")]
    record = calibration(rows, 4)
    assert record["unknown"] == pytest.approx(1 / 3)
    assert record["right"] == 0.5
    assert (record["sampled"]["right"], record["sampled"]["unknown"]) == (1.0, 0.0)
    assert auc_within([("a", -1.0, True), ("a", -2.0, False), ("b", 0.0, True)]) == [1.0]


def test_what_the_model_answers_behind_its_traces_has_no_say() -> None:
    """p is high where the sampled answer is right, as it always is, and has nothing to do with what traces say."""
    rng = random.Random(0)
    rows = []
    for q in range(60):
        for _ in range(8):
            log_prob, own = math.log(0.01 + 0.98 * (rng.random() < 0.5)), "right" if rng.random() < 0.5 else "wrong"
            sampled = "right" if rng.random() < math.exp(log_prob) else "wrong"
            rows.append(Marked(str(q), log_prob, 1, sampled, log_prob, own))
    record = calibration(rows, len(rows))
    assert record["sampled"]["auc_within"] > 0.95
    assert record["sampled"]["ece"] < 0.02
    assert "cannot be trusted here" in record["sentence"]


def test_floored_rewards_do_not_tell_traces_apart() -> None:
    rows = [
        Marked(str(q), -100.0 + 60 * i, 4, "wrong", -30.0, "right" if i else "wrong") for q in range(30) for i in (0, 1)
    ]
    record = calibration(rows, len(rows))
    assert (record["auc_within"], record["auc_within_log_prob"]) == (0.5, 1.0)
    assert "cannot be trusted here" in record["sentence"]


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        (r"so \boxed{4}, not 5", "4"),
        ("The answer is 12.", "12"),
        ("1 + 1 = 2\n2 + 2 = 4.\nDone with 9", "4"),
        ("sort 01257 middle 125", "125"),
        ("about 1,250.5 of 3/4", "3/4"),
        ("no idea", None),
        ("a = ", None),
        ("x = " + "y" * 300, None),
    ],
)
def test_what_a_trace_concludes(trace: str, said: str | None) -> None:
    assert conclusion(trace) == said


CHARACTERS = f"""
[model]
path = "model"
{PROMPTS}[generation]
max_trace_tokens = 24
max_answer_tokens = 2
[evaluation]
verifier = "text"
"""


def test_a_model_whose_answers_do_not_hang_on_its_traces_cannot_be_trusted(
    tmp_path: Path, covrl: Covrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From end to end: random weights, traces of random characters, some of which end in the reference."""
    monkeypatch.chdir(tmp_path)
    save_tiny("qwen2", "model")
    Path("run.toml").write_text(CHARACTERS)
    rows = [{"question": f"{i}+1", "answer": str(i % 10)} for i in range(80)]
    write_rows(Path("p.jsonl"), rows)
    asked = ["calibrate", "--model", "model", "--config", "run.toml", "--problems", "p.jsonl", "-n", "30"]
    code, out, err = covrl(*asked, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert (record["marked_by"], record["reward"]) == ("conclusion", "sum")
    assert record["questions_with_both"] >= 30
    assert "cannot be trusted here" in record["sentence"]


@pytest.mark.parametrize(
    ("good", "questions", "said"),
    [
        (1.0, 19, "Undecided: only 19 of 19 questions"),
        (1.0, 20, "can be trusted here"),
        (0.0, 20, "cannot be trusted here"),
        (0.72, 200, "are a weak guide here"),
        (0.62, 20, "not shown to be better than chance"),
    ],
)
def test_sentences(good: float, questions: int, said: str) -> None:
    rng = random.Random(3)
    rows = []
    for q in range(questions):
        high = rng.random() < good
        rows += [marked(q, -1.0, high), marked(q, -2.0, not high)]
    assert said in calibration(rows, len(rows))["sentence"]


def test_nothing_to_measure() -> None:
    record = calibration([], 10)
    assert (record["closed"], record["auc"], record["right"], record["reliability"]) == (0.0, None, None, [])
    assert record["sentence"].startswith("Undecided")


def test_the_command(tmp_path: Path, covrl: Covrl) -> None:
    asked = ["calibrate", "--model", "covrl:digits-common", "--problems", "digits:test", "--limit", "30", "-n", "4"]
    code, out, _ = covrl(*asked, "--json", "--out", str(tmp_path / "c"))
    assert code == 0
    record = json.loads(out)
    assert record["traces"] == 120
    assert (record["marked_by"], record["reward"]) == ("sound", "sum")
    assert 0 < record["right"] < 1
    gain = record["posterior_gain"]
    assert (gain["asked"], gain["prior_closed"], gain["posterior_closed"]) == (30, record["closed"], 1.0)
    assert gain["interval"][0] > 0, "the shipped base's posterior traces are right, and its prior ones seldom"
    assert gain["sentence"].startswith("Posterior traces are worth more than prior ones here (gain ")
    assert record == json.loads((tmp_path / "c/calibration.json").read_text())
    page = (tmp_path / "c/calibration.html").read_text()
    assert record["sentence"].split(":")[0] in page
    assert "Posterior traces are worth more" in page
    assert page.count("<circle") == len(record["reliability"])
    code, _, err = covrl(*asked, "--set", "evaluation.verifier=none")
    assert code == 2
    assert "evaluation.verifier is none" in err
    assert "questions with both" in covrl(*asked).out
