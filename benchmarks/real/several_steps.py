"""Word problems of several steps, and their worked solutions: ``python benchmarks/real/several_steps.py FOLDER``.

    Mia has 7 stamps. Then she gets 5 stamps. Then she loses 3 stamps. How many stamps does she have now?
    7+5=12 ⏎ 12-3=9                                                                    ⏎ The answer is 9.

Written are ``taught.jsonl`` (two and three steps, with solutions: they teach the format), ``train.jsonl`` and
``held_out.jsonl`` (four steps, with answers alone) and ``test.jsonl`` (four steps), ``longer.jsonl`` (five steps). No
problem is in two of them. Nothing supervised has four steps.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

PEOPLE = (("Mia", "she"), ("Tom", "he"), ("Ana", "she"), ("Ben", "he"), ("Eva", "she"), ("Sam", "he"))
THINGS = ("stamps", "coins", "cards", "books", "apples", "shells", "pens", "stones")
MOST = 9
"""The largest number that a step adds or takes away, and that a problem begins with."""

LIMIT = 30
"""The largest number that a problem comes to on its way."""

FILES = {
    "taught": ((2, 3), 600),
    "train": ((4,), 600),
    "held_out": ((4,), 40),
    "test": ((4,), 120),
    "longer": ((5,), 40),
}
"""Of each file the numbers of steps, and how many problems."""


def main() -> int:
    """The command; see the module."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return 0


def splits(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """The problems of every file; only those of ``taught`` have solutions."""
    chance, seen = random.Random(seed), set()
    found: dict[str, list[dict[str, str]]] = {}
    for name, (steps, count) in FILES.items():
        rows = found[name] = []
        for problem in drawn(chance, steps):
            if problem["question"] not in seen:
                seen.add(problem["question"])
                kept = problem if name == "taught" else {k: v for k, v in problem.items() if k != "solution"}
                rows.append({"id": f"{name}-{len(rows)}", **kept})
            if len(rows) == count:
                break
    return found


def drawn(chance: random.Random, steps: tuple[int, ...]) -> Iterator[dict[str, str]]:
    """Problems without end, with as many steps as one of ``steps``."""
    while True:
        (name, who), thing = chance.choice(PEOPLE), chance.choice(THINGS)
        now = chance.randint(2, MOST)
        said, worked = [f"{name} has {now} {thing}."], []
        for _ in range(chance.choice(steps)):
            gains = [n for n in range(1, MOST + 1) if now + n <= LIMIT]
            losses = [n for n in range(1, MOST + 1) if now - n >= 0]
            gets = bool(gains) and (not losses or chance.random() < 0.55)
            number = chance.choice(gains if gets else losses)
            after = now + number if gets else now - number
            said.append(f"Then {who} {'gets' if gets else 'loses'} {number} {thing}.")
            worked.append(f"{now}{'+' if gets else '-'}{number}={after}")
            now = after
        said.append(f"How many {thing} does {who} have now?")
        yield {"question": " ".join(said), "answer": str(now), "solution": "\n".join(worked) + "\n"}


if __name__ == "__main__":
    sys.exit(main())
