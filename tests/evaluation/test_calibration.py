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

from covrl.evaluation.calibration import Marked, auc, auc_within, calibration, reliability, tenths

SCORED = st.lists(st.tuples(st.sampled_from([-3.0, -2.0, -1.0, 0.0]), st.booleans()), max_size=12)


@given(SCORED)
def test_auc_is_the_share_of_pairs_in_order(scored: list[tuple[float, bool]]) -> None:
    pairs = [(a, b) for a, right in scored if right for b, wrong in scored if not wrong]
    expected = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs) if pairs else None
    found = auc(scored)
    assert (found is None) == (expected is None)
    assert found is None or found == pytest.approx(expected)


def marked(problem: int, log_prob: float, right: bool) -> Marked:
    return Marked(str(problem), log_prob, 2, "right" if right else "wrong")


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
        rows.append(Marked(str(i // 20), math.log(p), 1, "right" if rng.random() < p else "wrong"))
    record = calibration(rows, len(rows))
    assert record["ece"] < 0.02
    assert record["brier"] == pytest.approx(1 / 6, abs=0.01)
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
    rows = [Marked("a", -1.0, 1, "unknown"), Marked("a", -1.0, 1, "right"), Marked("a", -2.0, 1, "wrong")]
    record = calibration(rows, 4)
    assert record["unknown"] == pytest.approx(1 / 3)
    assert record["right"] == 0.5
    assert auc_within(rows[1:]) == [1.0]


@pytest.mark.parametrize(
    ("good", "questions", "said"),
    [
        (1.0, 19, "Cannot be told: only 19 of 19 questions"),
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
    assert record["sentence"].startswith("Cannot be told")


def test_the_command(tmp_path: Path, covrl: Covrl) -> None:
    asked = ["calibrate", "--model", "covrl:digits-common", "--problems", "digits:test", "--limit", "30", "-n", "4"]
    code, out, _ = covrl(*asked, "--json", "--out", str(tmp_path / "c"))
    assert code == 0
    record = json.loads(out)
    assert record["traces"] == 120
    assert record == json.loads((tmp_path / "c/calibration.json").read_text())
    page = (tmp_path / "c/calibration.html").read_text()
    assert record["sentence"].split(":")[0] in page
    assert page.count("<circle") == len(record["reliability"])
    code, _, err = covrl(*asked, "--set", "evaluation.verifier=none")
    assert code == 2
    assert "evaluation.verifier is none" in err
    assert "questions with both" in covrl(*asked).out
