"""`covrl data`: a set of problems as it will be read, before anything is trained on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from covrl.config import RunConfig, check, config_from, override
from covrl.problems.inspection import Pair, answer_forms, contradictions, equal_pairs, near_pairs
from covrl.problems.loading import load_problems
from covrl.prompt_checks import check_tokens
from covrl.prompts import Prompts, dated
from covrl.records import Problem
from covrl.reporting.tables import TitledTable, show_table
from covrl.reporting.text import one_line, visible

PAIRS_SHOWN = 3
"""Examples of each kind of pair."""


class DataRequest(NamedTuple):
    """The options of `covrl data`."""

    source: str
    config: Path | None
    settings: Sequence[str]
    model: str | None
    against: Sequence[str]
    shown: int
    as_json: bool


def run_data(asked: DataRequest) -> None:
    """Read the problems, and print what is in them.

    Raises:
        UserError: a setting, a row or the model's tokenizer cannot be used, or a row's prompt cannot be rendered.
    """
    config = _config(asked)
    fields = config.problems.fields
    problems = load_problems(asked.source, fields)
    against = {source: load_problems(source, fields) for source in asked.against}
    prompts = _prompts(config) if asked.model or asked.config else None
    if prompts is not None:
        check_tokens(prompts, problems)
    record = {
        "source": asked.source,
        "problems": len(problems),
        "with_turns": sum(bool(problem.turns) for problem in problems),
        "with_template_options": sum(bool(problem.template_options) for problem in problems),
        "lengths": _lengths(problems, prompts),
        "unit": "characters" if prompts is None else "tokens",
        "answers": dict(answer_forms(problems)),
        "duplicates": {
            "equal": equal_pairs(problems),
            "contradicting": contradictions(problems),
            "near": near_pairs(problems),
        },
        "against": {
            source: {"equal": equal_pairs(problems, others), "near": near_pairs(problems, others)}
            for source, others in against.items()
        },
    }
    if asked.as_json:
        print(json.dumps(record | {"rows": [asdict(problem) for problem in problems[: asked.shown]]}))
        return
    _show(Console(), record, problems[: asked.shown], prompts)


def _config(asked: DataRequest) -> RunConfig:
    named = [f"model.path={asked.model}"] * bool(asked.model)
    if asked.config is not None:
        return config_from(asked.config, [*asked.settings, *named])
    return check(RunConfig, override({"model": {"path": asked.model or "-"}}, asked.settings))


def _prompts(config: RunConfig) -> Prompts:
    """The prompts of the settings, with the model's tokenizer; its weights are not read."""
    from covrl.models.model import without_weights

    tokenizer = without_weights(config.model).tokenizer
    return Prompts(tokenizer, dated(config.prompts, tokenizer, date.today()))


def _lengths(problems: Sequence[Problem], prompts: Prompts | None) -> dict[str, dict[str, int]]:
    """Of what goes into a model: least, median, 95 % and most, in tokens, or in characters without a tokenizer."""
    if prompts is None:
        counts = {"question": [len(p.question) for p in problems], "answer": [len(p.answer) for p in problems]}
    else:
        counts = {
            "prior prompt": [len(prompts.prior(p)) for p in problems],
            "posterior prompt": [len(prompts.posterior(p)) for p in problems],
            "answer": [len(prompts.answer(p)) for p in problems],
        }
    return {name: _spread(sorted(values)) for name, values in counts.items()}


def _spread(values: Sequence[int]) -> dict[str, int]:
    last = len(values) - 1
    places = {"least": 0.0, "median": 0.5, "95 %": 0.95, "most": 1.0}
    return {name: values[round(share * last)] for name, share in places.items()}


def _show(console: Console, record: Mapping[str, Any], shown: Sequence[Problem], prompts: Prompts | None) -> None:
    for problem in shown:
        _show_row(console, problem, prompts)
    about = f"{record['with_turns']:,} have turns before the question"
    if options := record["with_template_options"]:
        about += f", {options:,} have options for the chat template"
    lengths = record["lengths"]
    head = [record["unit"], *next(iter(lengths.values()))]
    rows = [[name, *(f"{value:,}" for value in spread.values())] for name, spread in lengths.items()]
    title = f"{record['problems']:,} problems of {record['source']}"
    show_table(console, TitledTable(title, about, head, rows))
    forms = [[form, f"{n:,}", f"{n / record['problems']:.0%}"] for form, n in record["answers"].items()]
    show_table(console, TitledTable("answers by form", "judged by their looks", ["form", "answers", "share"], forms))
    pairs = {f"{kind}, in itself": found for kind, found in record["duplicates"].items()}
    pairs |= {f"{kind}, with {source}": p for source, kinds in record["against"].items() for kind, p in kinds.items()}
    overlaps = [[name, f"{len(found):,}", _examples(found)] for name, found in pairs.items()]
    about = "equal but for letter case and white space; near: three runs of three words in five are the same"
    show_table(console, TitledTable("the same question twice", about, ["", "problems", "such as"], overlaps))


def _examples(pairs: Sequence[Pair]) -> str:
    return "; ".join(f"{pair.other} is {pair.one} ({pair.likeness:.0%})" for pair in pairs[:PAIRS_SHOWN])


def _show_row(console: Console, problem: Problem, prompts: Prompts | None) -> None:
    """A row as it is read; with a tokenizer also the prior prompt that is made of it."""
    console.print(Text(f"\n{visible(problem.id)}", "bold"))
    parts = [(turn.role, turn.text) for turn in problem.turns] + [("question", problem.question)]
    parts += [("answer", problem.answer), *(("also accepted", each) for each in problem.accepted)]
    parts += [("solution", problem.solution)] if problem.solution else []
    parts += [("template options", json.dumps(dict(problem.template_options)))] if problem.template_options else []
    for name, text in parts:
        console.print(Text.assemble((f"{name}  ", "dim"), one_line(text, 300)))
    if prompts is not None:
        console.print(Text("prior prompt", "dim"))
        console.print(Text(visible(prompts.text(problem, "prior"))))
