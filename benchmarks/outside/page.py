"""The record of ``benchmarks/lm_eval_beside.py`` and its page: figures of each arm, and why single problems differ."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covrl.statistics import wilson

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
LINES, PAGE = RESULTS / "lm-eval.jsonl", RESULTS / "lm-eval.md"

Record = Mapping[str, Any]


def file_name(arm: str) -> str:
    """The folder of an arm."""
    return re.sub(r"[^a-z0-9]+", "-", arm)


def parting(trace: str, text: str) -> int | None:
    """The first character at which two continuations of one prompt differ; None where ``text`` begins with ``trace``.

    Example:
        >>> parting("2 + 2 is 4. The answer is", "2 + 2 is 4. The answer is 4.")
        >>> parting("2 + 2 is 4", "2 + 2 is 5")
        9
    """
    if text.startswith(trace):
        return None
    return next((i for i, (a, b) in enumerate(zip(trace, text, strict=False)) if a != b), min(len(trace), len(text)))


def reason(own: Record, other: Record, name: str) -> str:
    """Why covrl's verdict and that of the harness' filter ``name`` on one problem differ, or why its texts do."""
    if (at := parting(own["trace"], other["text"])) is not None:
        return f"texts part at character {at}"
    if own["finish"] != "closed":
        ended = "its token limit" if own["finish"] == "length" else "the end of its text"
        return f"covrl: wrong, no answer is stated before {ended}; the harness reads {other[name]!r}"
    return f"covrl reads {own['said'].strip()!r}, the harness {other[name]!r}"


def lines(ours: Mapping[str, list[dict[str, Any]]], theirs: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One line for each arm, without the texts: what was counted, what was read, and where texts part.

    Texts are compared with those of the arm ``covrl``, where the prompt is the same.
    """
    base = {record["id"]: record for record in ours["covrl"]}
    found = []
    for arm, records in ours.items():
        rows = [
            {"id": r["id"], "right": r["verdict"] == "right", "finish": r["finish"], "said": r["said"]} for r in records
        ]
        found.append({"arm": arm, "rows": rows})
    for arm, records in theirs.items():
        same_prompt = arm != "harness, its own words"
        rows = []
        for r in records:
            row = {key: r[key] for key in ("id", "stated", "last-number", "stated right", "last-number right")}
            if same_prompt:
                row["parts"] = parting(base[r["id"]]["trace"], r["text"])
                row["why"] = {name: reason(base[r["id"]], r, name) for name in ("stated", "last-number")}
            rows.append(row)
        found.append({"arm": arm, "rows": rows})
    return found


def share(right: int, count: int) -> str:
    """A figure with its interval over problems."""
    low, high = wilson(right / count, count)
    return f"{right} of {count} ({100 * low:.1f} to {100 * high:.1f} %)"


def arms_of(record: Sequence[Record]) -> dict[str, list[Record]]:
    """The rows of each arm."""
    return {line["arm"]: line["rows"] for line in record[1:]}


def same_prompt(arms: Mapping[str, Sequence[Record]]) -> list[str]:
    """The harness' arms whose prompt is covrl's."""
    return [arm for arm, rows in arms.items() if "parts" in rows[0]]


def figures(arms: Mapping[str, Sequence[Record]]) -> list[str]:
    """The table of right answers."""
    table = ["| arm | read by | right |", "|---|---|---|"]
    for arm, rows in arms.items():
        if "right" in rows[0]:
            closed = sum(row["finish"] == "closed" for row in rows)
            read = f"the answer after the close, `numeric` ({closed} closed)"
            table.append(f"| `{arm}` | {read} | {share(sum(r['right'] for r in rows), len(rows))} |")
            continue
        for name, what in (("stated", 'number after "The answer is"'), ("last-number", "last number of the text")):
            some = sum(row[name] != "[invalid]" for row in rows)
            right = sum(row[f"{name} right"] for row in rows)
            table.append(f"| `{arm}` | {what} ({some} have one) | {share(right, len(rows))} |")
    return table


def different(arms: Mapping[str, Sequence[Record]], arm: str, name: str) -> list[tuple[str, bool, bool, str]]:
    """Problems on which covrl and a filter of the harness do not agree: id, both verdicts, why."""
    own = {row["id"]: row["right"] for row in arms["covrl"]}
    return [
        (row["id"], own[row["id"]], row[f"{name} right"], row["why"][name])
        for row in arms[arm]
        if own[row["id"]] != row[f"{name} right"]
    ]


def differences(arms: Mapping[str, Sequence[Record]]) -> list[str]:
    """Every problem with two verdicts."""
    table = ["| problem | harness | filter | covrl | harness says | why |", "|---|---|---|---|---|---|"]
    words = {True: "right", False: "wrong"}
    for arm in same_prompt(arms):
        for name in ("stated", "last-number"):
            for number, own, other, why in different(arms, arm, name):
                dtype = "bfloat16" if "bfloat16" in arm else "float32"
                shown = why.replace("|", r"\|")
                table.append(f"| {number} | {dtype} | {name} | {words[own]} | {words[other]} | {shown} |")
    return table if len(table) > 2 else ["There is none."]


def texts(arms: Mapping[str, Sequence[Record]]) -> list[str]:
    """How many texts of the harness are those of covrl, by dtype."""
    found = []
    for arm in same_prompt(arms):
        parts = [row["parts"] for row in arms[arm]]
        apart = sorted(at for at in parts if at is not None)
        where = f"; the others part at character {apart[0]} or later" if apart else ""
        found.append(
            f"- `{arm}`: {parts.count(None)} of {len(parts)} texts are covrl's, as far as its trace goes{where}."
        )
    return found


def finishes(arms: Mapping[str, Sequence[Record]]) -> str:
    """How covrl's traces ended."""
    counted = Counter(row["finish"] for row in arms["covrl"])
    said = {"closed": 'said "The answer is"', "eos": "ended without it", "length": "reached the limit of tokens"}
    return ", ".join(f"{counted[kind]} {what}" for kind, what in said.items())


def page(record: Sequence[Record]) -> str:
    """The page of a record."""
    head, arms = record[0], arms_of(record)
    known = head["versions"]
    command = shlex.join(["python", *head["command"]])
    return "\n".join(
        [
            "# Beside lm-evaluation-harness\n",
            "Written by `python benchmarks/lm_eval_beside.py MODEL --gsm8k test.jsonl --lm-eval ENV/bin/python` from "
            "[lm-eval.jsonl](lm-eval.jsonl). The model is SmolLM2-135M-Instruct (`python benchmarks/real_model.py "
            "FOLDER`) after two steps of LoRA on a file of conversations, merged by `covrl merge`; the problems are "
            f"the first {head['problems']} of GSM8K's test set, as `benchmarks/outside/rows.py` writes them. All texts "
            "are greedy. [How to run it](../lm-eval.md).\n",
            "```",
            command,
            "```\n",
            "## Figures\n",
            "Right answers, with Wilson's 95 % interval over problems. The prompts of `covrl` and `harness` have the "
            f"same tokens on {head['equal prompts']} of {head['problems']} problems.\n",
            *figures(arms),
            "",
            "## Why they differ\n",
            f"Of covrl's traces {finishes(arms)}.\n",
            *texts(arms),
            "",
            "Every problem on which `covrl` and the harness with the same prompt give two verdicts:\n",
            *differences(arms),
            "",
            f"Machine: AMD EPYC, {head['threads']} thread(s), lm-eval {known['lm_eval']} with transformers "
            f"{known['transformers']} and torch {known['torch']}; covrl with transformers {known['our transformers']} "
            f"and torch {known['our torch']}.\n",
        ]
    )


def write_page() -> None:
    """The page of what is recorded."""
    record = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    PAGE.write_text(page(record), encoding="utf-8")
