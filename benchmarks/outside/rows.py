"""GSM8K as other evaluations read it: ``python benchmarks/outside/rows.py test.jsonl gsm8k.jsonl [--limit 100]``.

The first file is the data set's own, JSON lines whose ``answer`` is a worked solution and ``#### 72``. The second gets
a line for each of its first problems: ``id``, ``question``, ``answer`` (the number, without commas) and ``solution``.
Both lm-evaluation-harness (``covrl_gsm8k.yaml``) and ``covrl eval --problems gsm8k.jsonl`` read it as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from covrl.errors import UserError
from covrl.files import write_file
from covrl.problems.loading import Fields, load_problems


def rows_of(file: Path, limit: int | None = None) -> list[dict[str, str]]:
    """The first ``limit`` problems of the data set's file, or all.

    Raises:
        UserError: no such file, or a row that is none of GSM8K's.
    """
    return [
        {"id": p.id, "question": p.question, "answer": p.answer, "solution": p.solution or ""}
        for p in load_problems(str(file), Fields(extract="hash"))[:limit]
    ]


def write(file: Path, out: Path, limit: int | None = None) -> int:
    """Write the problems of ``file`` to ``out``; how many there are.

    Raises:
        UserError: the data cannot be read.
    """
    rows = rows_of(file, limit)
    write_file(out, "".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def main() -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="GSM8K's test.jsonl or train.jsonl")
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="only the first problems")
    given = parser.parse_args()
    try:
        print(f"{given.out}: {write(given.data, given.out, given.limit)} problems")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
