"""`covrl preflight` on a case that should be trained and on one that should not.

    python benchmarks/preflight.py --model FOLDER --svamp FILE [--page]

``digits``: the shipped base on its own task, at the command's default size, a few seconds. ``svamp-shuffled``:
SmolLM2-135M-Instruct on SVAMP whose answers were given to other questions, at 16 problems, 2 traces, 2 templates and 48
tokens, a few minutes of a core. Each case is run once: its result is ``docs/results/preflight/NAME.json``, and
``docs/results/preflight.md`` shows both.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from covrl.cli.preflight import cost_sentence
from covrl.reporting.preflight import grids, headline
from covrl.reporting.tables import markdown_table, markdown_text

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
CASES = {
    "digits": "the shipped base on its own task: to be trained",
    "svamp-shuffled": "SmolLM2-135M-Instruct on SVAMP with the answers of other questions: not to be trained",
}
SMALL = ("--limit", "16", "-n", "2", "--templates", "style,check", "--max-tokens", "48", "--set", "prompts.style=plain")
SMALL += ("--set", "evaluation.verifier=math", "--set", "generation.max_answer_tokens=12")


def main() -> int:
    """Run the cases that have no result, and write the page; 2 where one cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--svamp", type=Path, help="SVAMP as JSON lines of question and answer")
    parser.add_argument("--page", action="store_true", help="write the page from the results that are there")
    given = parser.parse_args()
    for name in () if given.page else CASES:
        file = FOLDER / "preflight" / f"{name}.json"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(measure(name, given.model, given.svamp), encoding="utf-8")
    (FOLDER / "preflight.md").write_text(page(), encoding="utf-8")
    return 0


def measure(name: str, model: Path | None, svamp: Path | None) -> str:
    """The command's JSON for one case."""
    if name == "digits":
        return preflight("--model", "covrl:digits", "--problems", "digits:dev")
    if model is None or svamp is None:
        sys.exit("svamp-shuffled needs --model and --svamp")
    with tempfile.TemporaryDirectory() as scratch:
        shuffled = Path(scratch) / "svamp-shuffled.jsonl"
        shuffled.write_text(shuffle_answers(svamp.read_text(encoding="utf-8")), encoding="utf-8")
        return preflight("--model", str(model), "--problems", str(shuffled), *SMALL)


def preflight(*arguments: str) -> str:
    """What ``covrl preflight --json`` prints; names of folders are left out."""
    command = [sys.executable, "-m", "covrl", "preflight", "--json", *arguments]
    record = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return shown(record)


def shown(record: dict[str, Any]) -> str:
    """A record as it is kept."""
    kept = record | {"model": Path(record["model"]).name, "problem_source": Path(record["problem_source"]).name}
    return json.dumps(kept, indent=1, ensure_ascii=False) + "\n"


def shuffle_answers(rows: str) -> str:
    """JSON lines with the answers permuted by a fixed seed."""
    problems = [json.loads(line) for line in rows.splitlines()]
    answers = [problem["answer"] for problem in problems]
    random.Random(0).shuffle(answers)
    return "".join(json.dumps({**p, "answer": a}) + "\n" for p, a in zip(problems, answers, strict=True))


def page() -> str:
    """Both cases, as Markdown."""
    parts = [
        "# The pre-flight, for and against",
        "",
        "`python benchmarks/preflight.py --model FOLDER --svamp FILE`, on a 2-core AMD EPYC without a GPU, one thread, "
        "while other programs used the same cores: its times are too long. "
        "[What it measures and by what rule it advises](../preflight.md). SVAMP with its own answers was not measured, "
        "and at 16 problems it would not be decided which template is best: the default stays.",
    ]
    for name, about in CASES.items():
        file = FOLDER / "preflight" / f"{name}.json"
        parts += ["", f"## {name}: {about}"]
        if not file.exists():
            parts += ["", "Not measured yet."]
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        parts += ["", f"**{markdown_text(headline(record))}**", ""]
        parts += [f"- {markdown_text(text)}" for text in record["advice"]["why"]]
        parts += [f"- {markdown_text(cost_sentence(record['cost']))}"] if record["cost"] else []
        for table in grids(record):
            parts += ["", markdown_table(table).replace("## ", "### ", 1)]
    return "\n".join([*parts, ""])


if __name__ == "__main__":
    sys.exit(main())
