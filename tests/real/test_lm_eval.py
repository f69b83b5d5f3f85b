"""lm-evaluation-harness on a merged folder: ``COVRL_LM_EVAL=ENV/bin/python make check-slow``.

``ENV`` is an environment of its own with ``lm-eval[hf]``; without the variable this is skipped.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import lm_eval_beside  # noqa: E402  # ty: ignore[unresolved-import]


def test_both_see_the_same_prompts_and_write_the_same_texts(real_model: Path, tmp_path: Path) -> None:
    python = os.environ.get("COVRL_LM_EVAL")
    if not python:
        pytest.skip("COVRL_LM_EVAL does not name the Python of an environment with lm-eval")
    rows = [
        {"question": f"Ann has {a} clips and buys {b}. How many clips has she?", "answer": f"Add.\n#### {a + b}"}
        for a, b in [(2, 3), (14, 5), (8, 9)]
    ]
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    head, *arms = lm_eval_beside.compare(real_model, data, Path(python), tmp_path / "out", 3)
    assert head["equal prompts"] == 3
    found = {line["arm"]: line["rows"] for line in arms}
    assert found.keys() == lm_eval_beside.COVRL.keys() | lm_eval_beside.HARNESS.keys()
    assert all(len(rows) == 3 for rows in found.values())
    assert [row["parts"] for row in found["harness"]] == [None] * 3
