"""The problems of benchmarks/claim.py, from reasoning-gym's generators (the extra ``reasoning-gym``).

text     family_relationships: a relation in one word
numeric  chain_sum of three terms
long     the same sums, and the answer is the worked sum: the control for thoughts that vanish
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

SIZES: Mapping[str, int] = {"train": 2000, "dev": 200, "test": 1000}
SEED = 22


class Task(NamedTuple):
    """A generator with its parameters, the verifier of its answers, their token limit, and whether they are worked."""

    generator: str
    parameters: Mapping[str, Any]
    verifier: str
    answer_tokens: int
    worked: bool = False


SUMS = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 2}
TASKS: Mapping[str, Task] = {
    "text": Task("family_relationships", {"min_family_size": 4, "max_family_size": 5}, "text", 8),
    "numeric": Task("chain_sum", SUMS, "numeric", 8),
    "long": Task("chain_sum", SUMS, "text", 64, worked=True),
}
"""In the order in which they are run."""


def make_problems(task: str, folder: Path) -> Path:
    """Write ``train``, ``dev`` and ``test`` of a task as JSON lines, unless they are there; no question is in two.

    Raises:
        ModuleNotFoundError: reasoning-gym is not installed.
    """
    there = folder / task
    if all((there / f"{split}.jsonl").is_file() for split in SIZES):
        return there
    from reasoning_gym import create_dataset

    made, wanted = TASKS[task], sum(SIZES.values())
    rows: dict[str, dict[str, str]] = {}
    for entry in create_dataset(made.generator, size=8 * wanted, seed=SEED, **made.parameters):
        row = problem(entry, made.worked)
        rows.setdefault(row["question"], row)
        if len(rows) == wanted:
            break
    if len(rows) < wanted:
        raise ValueError(f"{task}: reasoning-gym made {len(rows)} different questions, and {wanted} are wanted")
    left = iter(rows.values())
    there.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        lines = [json.dumps({"id": f"{task}/{split}/{i}", **next(left)}) + "\n" for i in range(size)]
        (there / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return there


def problem(entry: Mapping[str, Any], worked: bool) -> dict[str, str]:
    """Question and answer of an entry; the answer is the worked sum if ``worked``."""
    question = str(entry["question"]).strip()
    return {"question": question, "answer": worked_sum(question) if worked else str(entry["answer"]).strip()}


def worked_sum(question: str) -> str:
    """The running sums of the terms in a question.

    Example:
        >>> worked_sum("State the final answer to the following arithmetic problem: 4 + 12 - 7 =")
        '4 plus 12 is 16, and 16 minus 7 is 9'
    """
    terms = re.findall(r"([-+]?)\s*(\d+)", question.rpartition(":")[2])
    total, parts = int(terms[0][0] + terms[0][1]), []
    for sign, digits in terms[1:]:
        before, total = total, total + int(sign + digits)
        parts.append(f"{before} {'minus' if sign == '-' else 'plus'} {digits} is {total}")
    return ", and ".join(parts)
