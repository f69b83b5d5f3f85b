"""The results of `covrl eval` as tables, Markdown and files; the page is made in :mod:`covrl.reporting.exams`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from covrl.cli.eval_config import TRACES_OWN
from covrl.cli.eval_run import Outcome
from covrl.files import write_file
from covrl.reporting.exams import render_exams
from covrl.reporting.format import number
from covrl.reporting.tables import TitledTable, markdown_table, markdown_text

UNITS = {
    "answer_entropy": "nats",
    "token_entropy": "nats",
    "diversity_right": "",
    "trace_tokens": "tokens",
    "trace_tokens_right": "tokens",
    "trace_tokens_wrong": "tokens",
    "answer_tokens": "tokens",
}
"""Figures that are no shares, with their units."""

ABOUT = {
    "answer_entropy": "of what the samples answer, nats",
    "token_entropy": "mean of −log p a sampled token, nats",
    "diversity_right": "1 − common word triples between right traces",
}

NOT_SHOWN = ("problems", "n", "pass_curve", "intervals", "chance")


def tables(record: Mapping[str, Any]) -> Iterator[TitledTable]:
    """The figures of each exam with its models side by side, gained and lost problems, and the suites."""
    for exam in record["exams"]:
        yield _figures(exam, record["figures"][exam["name"]])
        yield from (_support(row) for row in record["support"] if row["exam"] == exam["name"])
    for suite in dict.fromkeys(row["suite"] for row in record["overall"]):
        mine = [row for row in record["overall"] if row["suite"] == suite]
        names = list(mine[0]["members"])
        rows = [[name, *(number(row["members"][name], "share") for row in mine)] for name in names]
        rows.append(["mean", *(number(row["value"], "share") for row in mine)])
        about = f"avg@n of each benchmark; {mine[0]['note']}"
        yield TitledTable(suite, about, ["", *(row["model"] for row in mine)], rows)


def _figures(exam: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> TitledTable:
    models = list(found)
    names = [name for name in found[models[0]] if name not in NOT_SHOWN]
    rows = [[_label(name, exam), *(_value(found[m], name) for m in models)] for name in names]
    if exam["chance"] is not None:
        rows.insert(0, ["chance", *([number(exam["chance"], "share")] * len(models))])
    heat, tokens, answers = (_each(exam, key) for key in ("temperature", "trace_tokens", "answer_temperature"))
    apart = f", answers at temperature {answers}" if answers != TRACES_OWN else ""
    about = (
        f"{exam['problems']:,} problems, n = {exam['samples']} at temperature {heat}{apart} and top-p "
        f"{exam['top_p']:g}, up to {tokens} trace tokens, graded by {exam['verifier']}; 95 % intervals over problems"
    )
    return TitledTable(exam["name"], about, ["", *models], rows)


def _each(exam: Mapping[str, Any], key: str) -> str:
    """A setting's value, or each model's value if they differ."""
    values = {
        model: TRACES_OWN if found.get(key) is None else f"{found[key]:,.12g}"
        for model, found in exam["sampling"].items()
    }
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} ({model})" for model, value in values.items())


def _label(name: str, exam: Mapping[str, Any]) -> str:
    label = name.replace("@n", f"@{exam['samples']}").replace("_", " ")
    return f"{label} ({ABOUT[name]})" if name in ABOUT else label


def _value(figures: Mapping[str, Any], name: str) -> str:
    value = figures.get(name)
    text = number(value, UNITS.get(name, "share"))
    low, high = figures["intervals"].get(name, (0.0, 0.0))
    return f"{text} ({100 * low:.1f} to {100 * high:.1f})" if low < high else text


def _support(row: Mapping[str, Any]) -> TitledTable:
    half, base, other = row["n"] // 2, row["base"], row["other"]
    named = [(f"all {row['n']} samples", row["at_n"])]
    if "null" in row:
        named += [(f"{half} against {half}", row["halves"]), (f"null, {half} against {half}", row["null"])]
    rows = []
    for name, found in named:
        counts = [f"{found[key]:.6g}" if found is row["at_n"] else f"{found[key]:.1f}" for key in COUNTS]
        ends = found.get("intervals") or found["quantiles"]
        shares = [_with_ends(found[key], ends[key]) for key in ("srr", "ndr", "sds", "nscr")]
        rows.append([name, *counts, *shares])
    about = (
        f"Problems that {other} solves (one sample is right) against {base}. The null is {base} against itself: "
        f"compare the two lines of equal budget. In brackets: 95 % over problems, and of the null 95 % of its draws. "
        f"{row['n']} samples find a problem of success rate "
        f"{number(row['detectable'], 'share')} with 95 %."
    )
    head = ["", "kept", "gained", "lost", "neither", "SRR", "NDR", "SDS", "NSCR"]
    return TitledTable(f"{row['exam']}: {other} against {base}", about, head, rows)


def _with_ends(value: float, ends: Sequence[float]) -> str:
    low, high = ends
    return f"{number(value)} ({low:.2f} to {high:.2f})" if low < high else number(value)


COUNTS = ("kept", "gained", "lost", "neither")


def markdown(record: Mapping[str, Any]) -> str:
    """The tables and notes as Markdown."""
    parts = ["# covrl eval", *map(markdown_table, tables(record))]
    if record["notes"]:
        parts.append("## Notes\n\n" + "\n".join(f"- {markdown_text(note)}" for note in record["notes"]))
    return "\n\n".join(parts) + "\n"


def _pass_curves(record: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    return {e: {m: found["pass_curve"] for m, found in models.items()} for e, models in record["figures"].items()}


def write_results(out: Path, outcome: Outcome) -> list[Path]:
    """``results.json``, ``results.md`` and ``report.html``; returns their paths."""
    contents = {
        "results.json": json.dumps(outcome.record, indent=1, ensure_ascii=False),
        "results.md": markdown(outcome.record),
        "report.html": render_exams(
            list(tables(outcome.record)), outcome.record["notes"], outcome.solved, _pass_curves(outcome.record)
        ),
    }
    for name, text in contents.items():
        write_file(out / name, text.encode("utf-8", "backslashreplace"))
    return [out / name for name in contents]
