"""Figures from records: golden values, and support against a null."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from covrl.errors import UserError
from covrl.evaluation.benchmarks import Suite
from covrl.evaluation.exam import Exam, Sample, Solved, from_json, to_json
from covrl.evaluation.metrics import check_ks, diversity, figures, overall, supports
from covrl.records import Problem
from covrl.rewards.normalise import spelling


def sample(answer: str | None, right: bool, trace: str = "a b c d", nats: float = 1.0) -> Sample:
    cut = answer is None
    return Sample(
        trace, answer or "", answer, "right" if right else "wrong", "length" if cut else "closed",
        4, 0 if cut else 2, False, nats,
    )  # fmt: skip


def solved(name: str, greedy: bool, *samples: Sample) -> Solved:
    return Solved(name, "q", "1", "d", sample("1", greedy), samples)


ROWS = [
    solved("a", True, sample("1", True), sample("1", True, nats=3.0), sample("2", False), sample(None, False)),
    solved("b", False, sample("3", False), sample("3", False), sample("1", True), sample("3", False)),
]


def test_golden_figures() -> None:
    found = figures(ROWS, [1, 2, 4], chance=0.25)
    assert (found["problems"], found["n"], found["chance"], found["greedy"]) == (2, 4, 0.25, 0.5)
    assert found["avg@n"] == found["pass@1"] == 3 / 8
    assert found["pass@2"] == pytest.approx(((1 - 1 / 6) + 1 / 2) / 2)
    assert found["pass@4"] == found["pass_curve"][3] == 1.0
    assert found["pass_curve"][:2] == [found["pass@1"], found["pass@2"]]
    assert found["maj@4"] == 0.5  # the majority is right for a and wrong for b
    entropies = (0.5 * math.log(2) + 0.5 * math.log(4)), (0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert found["answer_entropy"] == pytest.approx(sum(entropies) / 2)
    assert found["token_entropy"] == pytest.approx(10 / 32)
    assert found["truncated"] == found["no_closing_tag"] == 1 / 10
    assert found["answer_tokens"] == 2.0
    low, high = found["intervals"]["greedy"]
    assert (low, high) == (0.0, 1.0)


def test_majorities_have_intervals_over_problems() -> None:
    """Half of the problems have a right majority: the interval is that of a mean of as many coins."""
    wins = solved("a", True, sample("1", True), sample("1", True), sample("2", False))
    loses = solved("b", True, sample("3", False), sample("3", False), sample("1", True))
    found = figures([wins, loses] * 50, [1, 3])
    low, high = found["intervals"]["maj@3"]
    assert found["maj@3"] == 0.5
    assert (low, high) == (pytest.approx(0.4, abs=0.02), pytest.approx(0.6, abs=0.02))
    assert figures([wins] * 9, [3])["intervals"]["maj@3"] == [1.0, 1.0]
    assert "maj@1" not in found["intervals"]


def test_without_samples_there_are_greedy_figures_alone() -> None:
    found = figures([solved("a", True)], [])
    assert found["greedy"] == 1.0
    assert not {"avg@n", "answer_entropy", "pass@1"} & found.keys()
    assert supports([solved("a", True)], [solved("a", True)]) is None


def test_a_k_beyond_n_is_refused() -> None:
    assert check_ks([], 5, "x") == [1, 2, 4]
    assert check_ks([5, 1], 5, "x") == [1, 5]
    with pytest.raises(UserError, match=r"--k 8: MATH-500: pass@8 and maj@8 need at least 8 samples .* n is 4"):
        check_ks([1, 8], 4, "MATH-500")


def test_diversity_of_right_traces() -> None:
    def row(*traces: str) -> Solved:
        return solved("a", True, *(sample("1", True, trace) for trace in traces))

    assert diversity([row("a b c d", "a b c d")]) == 0.0
    assert diversity([row("a b c d", "e f g h")]) == 1.0
    assert diversity([row("a b c d", "a b c e")]) == pytest.approx(2 / 3)  # abc is common; bcd and bce are not
    assert diversity([row("a b c d")]) is None


def test_support_at_equal_budget_is_the_null_where_nothing_changed() -> None:
    """Two draws from the same success rates: at all samples problems seem lost and gained, as they are in the null."""
    rng = random.Random(0)
    rates = [rng.random() ** 3 for _ in range(150)]

    def draw() -> list[Solved]:
        return [solved(str(i), True, *(sample("1", rng.random() < p) for _ in range(8))) for i, p in enumerate(rates)]

    found = supports(draw(), draw())
    assert found is not None
    assert found["at_n"]["gained"] > 5
    assert found["at_n"]["lost"] > 5
    for rate in ("srr", "ndr", "nscr"):
        assert found["halves"][rate] == pytest.approx(found["null"][rate], abs=0.09)
    assert found["detectable"] == pytest.approx(1 - 0.05 ** (1 / 8))
    better = [replace(row, samples=(sample("1", True),) * 8) for row in draw()]
    gain = supports(draw(), better)
    assert gain is not None
    assert gain["halves"]["nscr"] > gain["null"]["nscr"] + 0.1
    for line in ("at_n", "halves"):
        assert all(low <= gain[line][rate] <= high for rate, (low, high) in gain[line]["intervals"].items())
    assert gain["halves"]["intervals"]["nscr"][0] > gain["null"]["quantiles"]["nscr"][1]


def test_a_suite_gives_each_benchmark_one_vote() -> None:
    found = {"a": {"m": {"avg@n": 0.2, "greedy": 0.9, "problems": 1000}}, "b": {"m": {"greedy": 0.6, "problems": 1}}}
    record = overall(Suite("s", ("a", "b"), "note"), "m", found)
    assert record["value"] == pytest.approx(0.4)
    assert record["members"] == {"a": 0.2, "b": 0.6}


def test_records_come_back_from_their_line() -> None:
    assert from_json(to_json(ROWS[0])) == ROWS[0]


def test_one_spelling() -> None:
    assert spelling("0.50") == spelling("0.5 ") != spelling("5")
    assert spelling("1,000") == spelling("1000")
    assert spelling(" ") is None


def test_the_protocols_extraction_reads_the_answer() -> None:
    problem = Problem("p", "q", "B", ("12",))
    exam = Exam("x", "x", (problem,), 1, 1.0, 8, 8, "choice", ("boxed", "none"), choice=True)
    grade = exam.grader()
    assert grade is not None
    said = [r"so \boxed{B}", "(b)", "B. 12", "12", "C", "A dog"]
    assert list(grade([(problem, text) for text in said])) == ["right"] * 4 + ["wrong", "unknown"]
