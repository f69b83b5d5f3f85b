"""The measurement of the verifiers (benchmarks/verifier_confusion.py) on a small seeded part: nothing falsely right."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import verifier_confusion as bench

ROOT = Path(__file__).parents[2]
GOLD = {
    "written": [
        *(
            "7",
            "-4",
            "42",
            "1250",
            "58500",
            "204",
            "3.75",
            r"\frac{3}{8}",
            r"-\frac{35}{9}",
            r"\dfrac{17}{50}",
            "90^\\circ",
        ),
        *(r"\$32", "52_8", r"5.4 \text{ cents}", r"\text{(C)}", r"\text{east}", "(3,4]", "(2,\\infty)", "(15,-29)"),
        *("(6,31,-1)", r"(2,12) \cup (12,102)", "1,-2", "3, 5, 7", r"1 \pm \sqrt{19}", "x^3+3x-6", r"3\sqrt{13}"),
        *(r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}", "6 - 5i", "y = 2x + 3", "x=5", r"18+2\pi", "2k+2"),
    ]
}


def test_pairs_are_seeded_and_their_labels_are_arithmetic() -> None:
    pairs = bench.build_pairs(GOLD, seed=3, per_set=5)
    assert pairs == bench.build_pairs(GOLD, seed=3, per_set=5)
    assert pairs != bench.build_pairs(GOLD, seed=4, per_set=5)
    assert len(pairs) == len(set(pairs))
    both = {(p.reference, p.response) for p in pairs if p.same} & {
        (p.reference, p.response) for p in pairs if not p.same
    }
    assert not both
    assert {p.kind for p in pairs} >= {
        *("LaTeX spacing", "bases", "commas", "decimals", "equations", "formulas", "fractions", "intervals", "letters"),
        *("lists", "matrices", "mixed numbers", "percent", "plus or minus", "points", "text around", "tricks", "units"),
        *("case of letters", "another base", "percent in words", "units asked for", "units not asked for"),
        *("named values", "repeated values"),
    }


def test_no_unequal_answer_is_right_and_nearly_all_equal_ones_are() -> None:
    pairs = random.Random(0).sample(bench.build_pairs(GOLD, seed=0, per_set=3), 240)
    judged = bench.verdicts(pairs, "math")
    assert bench.false_right(pairs, judged) == []
    found = Counter((p.same, j.verdict) for p, j in zip(pairs, judged, strict=True))
    same = sum(n for (label, _), n in found.items() if label)
    assert found[True, "right"] >= 0.98 * same > 50
    assert found[True, "wrong"] == 0
    table = bench.table(pairs, judged)
    assert f"| **all** | {found[True, 'right']:,} | 0 |" in table
    assert bench.misses(pairs, judged).count("| equal | wrong |") == 0


@pytest.mark.parametrize("verifier", ["text", "numeric,relative=0", "choice"])
def test_the_other_verifiers_are_never_right_about_unequal_answers(verifier: str) -> None:
    pairs = bench.build_pairs(GOLD, seed=1, per_set=3)
    assert bench.false_right(pairs, bench.verdicts(pairs, verifier)) == []


def test_solutions_are_paired_with_other_answers_only() -> None:
    rows = [{"answer": a, "solution": f"\\boxed{{{a}}}"} for a in ("5", "x=5", r"\frac12", r"\frac{1}{2}", "7")]
    pairs = bench.solution_pairs(rows, seed=0)
    assert sum(p.same for p in pairs) == 5
    crossed = {(p.reference, p.response) for p in pairs if not p.same}
    assert ("5", "\\boxed{x=5}") not in crossed
    assert (r"\frac12", r"\boxed{\frac{1}{2}}") not in crossed
    assert ("7", "\\boxed{5}") in crossed


def test_the_questions_formulas_are_no_answers() -> None:
    rows = [
        {"problem": r"Compute $513^2 - 487^2$ where $x = \frac12$. [asy] label($9$); [/asy]", "answer": "26000"},
        {"problem": r"Simplify \[\sqrt{242}.\]", "answer": r"11\sqrt2"},
        {"problem": r"Is $\frac12$ that?", "answer": r"\frac{1}{2}"},
    ]
    pairs = bench.restated_pairs(rows)
    assert [p.response for p in pairs] == [
        f"<answer>{a}</answer>" for a in ("513^2 - 487^2", r"x = \frac12", "x", r"\frac12", r"\sqrt{242}")
    ]
    assert not any(p.same for p in pairs)
    assert [j.verdict for j in bench.verdicts(pairs, "math")] == ["unknown", "wrong", "wrong", "wrong", "unknown"]


def test_a_false_right_is_found() -> None:
    pairs = [
        bench.Pair("k", False, "5", "#### 5"),
        bench.Pair("k", True, "5", "#### 5"),
        bench.Pair("k", True, "5", "#### 6"),
    ]
    judged = bench.verdicts(pairs, "text")
    assert bench.false_right(pairs, judged) == [pairs[0]]
    assert "| k | 1 | 1 | 0 | 1 | 0 | 0 |" in bench.table(pairs, judged)
    assert "| unequal | right | k | equal as text | 1 | `` 5 `` | `` 5 `` |" in bench.misses(pairs, judged)
