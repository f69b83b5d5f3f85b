"""References against themselves in other spellings (benchmarks/reference_spellings.py): none is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import reference_spellings as bench

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "reference_spellings.py"
DATA = ROOT / ".." / "shared" / "data" / "math500" / "test.jsonl"
REFERENCES = [
    *(
        "7",
        "-4",
        "1250",
        r"11,\! 111,\! 100",
        "58,500",
        "3.75",
        r"\frac{3}{8}",
        r"-\frac{35}{9}",
        r"\frac34",
        r"90^\circ",
    ),
    *(r"\$32", r"\$18.90", r"\$32,\!348", "52_8", "4210_{5}", r"5.4 \text{ cents}", r"15\mbox{ cm}^2", r"\text{(C)}"),
    *(
        r"\text{east}",
        "(3,4]",
        r"(2,\infty)",
        r"\left( 3, \frac{\pi}{2} \right)",
        r"(2,12) \cup (12,102)",
        "1,-2",
        r"10\%",
    ),
    *(
        r"1 \pm \sqrt{19}",
        "x^3+3x-6",
        r"3\sqrt{13}",
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        "6 - 5i",
        "x=5",
    ),
    *(
        "y = 2x + 3",
        r"x \leq 3",
        r"18+2\pi",
        r"1+274i",
        r"\frac{\sqrt{2}}{2}",
        r"\log_2 3",
        r"\{1, 2\}",
        r"e^{2}",
        "2k+2",
    ),
]


def test_no_spelling_of_a_reference_is_wrong() -> None:
    rows = [row for reference in REFERENCES for row in bench.spellings(reference)]
    assert min(Counter(row.reference for row in rows).values()) >= 5
    judged = bench.verdicts(rows, "math")
    assert [(r.way, r.reference, r.response) for r, j in zip(rows, judged, strict=True) if j.verdict == "wrong"] == []
    assert sum(j.verdict == "right" for j in judged) > 0.98 * len(rows)
    assert f"| **all** | {sum(j.verdict == 'right' for j in judged)} |" in bench.table(rows, judged)


def test_every_form_changes_some_reference_and_a_wrong_one_is_found() -> None:
    ways = {row.way for reference in [*REFERENCES, "500", r"11\sqrt2"] for row in bench.spellings(reference)}
    assert ways == {*bench.PLACES, *bench.FENCES, *bench.FORMS}
    rows = [bench.Spelled("dollars", "5", "#### 6", "")]
    assert "| dollars | 0 | 0 | 1 |" in bench.table(rows, bench.verdicts(rows, "text"))


def test_real_references_are_not_wrong_in_other_spellings() -> None:
    if not DATA.exists():
        pytest.skip(f"{DATA} is missing")
    problems = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()[::12]]
    rows = [row for p in problems for row in bench.spellings(str(p["answer"]), p["problem"])]
    judged = bench.verdicts(rows, "math")
    assert [(r.way, r.reference) for r, j in zip(rows, judged, strict=True) if j.verdict == "wrong"] == []


def test_without_data_the_script_says_that_it_skips(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--data", str(tmp_path / "none.jsonl")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"skipped: {tmp_path / 'none.jsonl'} is missing\n"
