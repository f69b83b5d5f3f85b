"""What `covrl preflight` does once its options are read."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from rich.console import Console

from covrl import api
from covrl.cli.evaluate import TRIED_TOKENS, TraceRequest, reward_form
from covrl.cli.show import mebibytes
from covrl.config import AlgorithmTable, PromptConfig, RunConfig, check, read_settings
from covrl.config.styles import Template
from covrl.errors import UserError
from covrl.evaluation.bench import Bench
from covrl.evaluation.preflight import preflight
from covrl.evaluation.styles import check_style, recommend, template_wordings, try_style, wordings
from covrl.files import write_file
from covrl.generation.engines import rows_of
from covrl.problems.foils import foils
from covrl.prompts import Prompts
from covrl.records import Problem
from covrl.reporting.format import duration
from covrl.reporting.preflight import grids, headline, render_preflight
from covrl.reporting.tables import show_table
from covrl.reporting.text import visible
from covrl.rewards.code_tests import isolation_notes
from covrl.scoring.pack import PassLimits
from covrl.training.dry_run import dry_run
from covrl.training.run import Run


class Size(NamedTuple):
    """How much is sampled: problems, traces of each prompt for each of them, and which templates."""

    problems: int
    traces: int
    templates: tuple[str, ...]


FULL = Size(30, 4, get_args(Template))
QUICK = Size(12, 2, ("style", "neutral", "check"))

STYLE_PROBLEMS, STYLE_TRACES = 8, 2
"""Problems, and traces of each prompt a problem, that the style is chosen by where the settings have none."""


@dataclass(frozen=True, slots=True)
class PreflightRequest:
    """The options of the command: those that it shares with others, the most tokens of a trace, and templates."""

    traces: TraceRequest
    max_tokens: int | None
    templates: tuple[str, ...]
    out: Path | None


def run_preflight(asked: PreflightRequest) -> None:
    """Measure, advise, and print; or one JSON line. Writes ``preflight.json`` and ``preflight.html`` in ``out``.

    Raises:
        UserError: the model or the problems cannot be used, there is no grader, or too few problems.
    """
    given, said = asked.traces, _Says(time.perf_counter())
    config = api.config_for(given.model, given.config, given.settings)
    if config.evaluation.verifier == "none":
        raise UserError(
            "preflight compares answers with references, and evaluation.verifier is none: "
            "--set evaluation.verifier=text (or exact, math)"
        )
    if asked.out is not None:
        api.new_run_folder(asked.out)
    tokens = asked.max_tokens or min(config.generation.max_trace_tokens, TRIED_TOKENS)
    config = _with(config, generation=config.generation.model_copy(update={"max_trace_tokens": tokens}))
    run = api.build_evaluation(config, given.problems)
    problems = tuple(run.held_out[: given.limit])
    if len(problems) < 2:
        raise UserError(f"{given.problems}: preflight needs at least 2 problems, found {len(problems)}")
    notes = [*run.notes, *isolation_notes(config.evaluation.verifier)]
    style = None if _has_wording(given) else _style(run, problems[:STYLE_PROBLEMS], tokens, said, notes)
    prompts = run.config.prompts if style is None else style
    record: dict[str, Any] = {
        "model": given.model,
        "problem_source": given.problems,
        "problems": len(problems),
        "n": given.n,
    }
    record |= {"max_tokens": tokens, "style": prompts.style}
    templates = usable_templates(run, prompts, problems, asked.templates, notes)
    record |= _measured(run, prompts, problems, given.n, templates, said)
    record |= {"notes": notes, "cost": _cost(config, prompts, record["advice"], given.problems, said)}
    record["seconds"] = said.seconds
    _show(record, asked)


@dataclass(frozen=True, slots=True)
class _Says:
    """Tells what is going on, on standard error, with the time since ``start``."""

    start: float

    def __call__(self, text: str) -> None:
        print(f"{duration(self.seconds):>6}  {visible(text)}", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


def _with(config: RunConfig, **parts: Any) -> RunConfig:
    return config.model_copy(update=parts)


def _has_wording(asked: TraceRequest) -> bool:
    """Whether the settings, or the model, say how prompts are worded."""
    typed = any(text.startswith("prompts.") for text in asked.settings)
    if asked.config is not None:
        return typed or "prompts" in read_settings(asked.config)
    return typed or api.has_settings(asked.model)


def _style(
    run: Run, problems: tuple[Problem, ...], tokens: int, say: Callable[[str], None], notes: list[str]
) -> PromptConfig | None:
    """The style that `covrl prompts` would recommend on these problems; None where none closes a trace."""
    tried, tokenizer = [], run.prompts.tokenizer
    for name, wording in wordings(run.config.prompts).items():
        prompts = Prompts(tokenizer, wording)
        try:
            check_style(prompts, run.models["policy"], run.config, problems, tokens)
        except UserError as error:
            notes.append(f"style {name} cannot be used: {error}")
            continue
        say(f"style {name}: {2 * STYLE_TRACES * len(problems)} traces …")
        model = run.models["policy"]
        tried.append(
            (wording, try_style(name, run.generator, model, prompts, problems, run.config, STYLE_TRACES, tokens))
        )
    if not tried:
        raise UserError("none of the styles can be used with this model and these problems (covrl prompts says why)")
    best, sentences = recommend([found for _, found in tried], tokens)
    notes.append(sentences[0])
    return next((wording for wording, found in tried if found.name == best), None)


def _measured(
    run: Run,
    wording: PromptConfig,
    problems: tuple[Problem, ...],
    n: int,
    templates: Mapping[str, Prompts],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The figures and the advice."""
    config, model = run.config, run.models["policy"]
    assert run.evaluator is not None
    assert run.evaluator.grade is not None
    evaluator = replace(run.evaluator, prompts=Prompts(run.prompts.tokenizer, wording), answer_temperature=None)
    bench = Bench(
        evaluator, run.evaluator.grade, model, problems, n, config.generation.temperature, config.training.seed,
        rows_of(config.generation), PassLimits.of(config.training),
    )  # fmt: skip
    group, words = config.training.rollouts_per_problem, config.report.hedging_words
    return preflight(bench, templates, reward_form(config), group, words, say)


def named_templates(text: str) -> tuple[str, ...]:
    """``check,style`` as names, each once.

    Raises:
        UserError: there is no such template.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    known = get_args(Template)
    wrong = next((name for name in names if name not in known), None)
    if wrong is not None:
        raise UserError(f"--templates {text}: there is no template {wrong!r}; known: {', '.join(known)}")
    return names


def usable_templates(
    run: Run, wording: PromptConfig, problems: tuple[Problem, ...], names: Sequence[str], notes: list[str]
) -> dict[str, Prompts]:
    """Those of the wording's templates that the model can be shown with right and with wrong answers.

    ``notes`` get why another cannot.
    """
    shown = [replace(p, hint=foil) for p, foil in zip(problems, foils(problems), strict=True) if foil]
    found: dict[str, Prompts] = {}
    of_wording = template_wordings(wording)
    for name in names:
        prompts = Prompts(run.prompts.tokenizer, of_wording[name])
        try:
            limit = run.config.generation.max_trace_tokens
            check_style(prompts, run.models["policy"], run.config, [*problems, *shown], limit)
            _check_words(prompts, problems[0])
        except UserError as error:
            notes.append(f"template {name} cannot be used: {error}")
        else:
            found[name] = prompts
    return found


def _check_words(prompts: Prompts, problem: Problem) -> None:
    """The tokenizer has tokens for the words around the answer.

    Raises:
        UserError: it has not.
    """
    unknown = prompts.tokenizer.unk_token_id
    if unknown is not None and unknown in prompts.posterior(problem) and unknown not in prompts.prior(problem):
        raise UserError("the tokenizer has no tokens for its words")


def _cost(
    config: RunConfig, prompts: PromptConfig, advice: Mapping[str, Any], source: str, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """What `covrl train --dry-run` says of the advised method: bytes, and seconds for all steps; None without one."""
    method = advice["method"]
    if method is None:
        return None
    say(f"{method}: what it would cost …")
    own = config.algorithm if config.algorithm.name == method else check(AlgorithmTable, {"name": method})
    wording = template_wordings(prompts).get(advice["template"] or "", prompts)
    problems = config.problems.model_copy(update={"train": source, "held_out": ""})
    parts: dict[str, Any] = {"algorithm": own, "prompts": wording, "problems": problems}
    if config.rewards.verifier == "none":
        parts["rewards"] = config.rewards.model_copy(update={"verifier": config.evaluation.verifier})
    try:
        found = dry_run(api.build(_with(config, **parts)))
    except UserError as error:
        return {"method": method, "unknown": str(error)}
    cost = found.cost
    return {
        "method": method,
        "memory": cost.memory,
        "sampling": cost.sampling,
        "disk": cost.disk,
        "seconds": cost.seconds,
        "steps": config.training.steps,
        "notes": list(found.notes),
    }


def _show(record: dict[str, Any], asked: PreflightRequest) -> None:
    if asked.out is not None:
        write_file(asked.out / "preflight.json", json.dumps(record, indent=1))
        write_file(asked.out / "preflight.html", render_preflight(record))
    if asked.traces.as_json:
        print(json.dumps(record))
        return
    console = Console()
    for table in grids(record):
        show_table(console, table)
    for note in record["notes"]:
        console.print(visible(f"note: {note}"), markup=False, highlight=False, style="dim")
    console.print(visible(headline(record)), markup=False, highlight=False, style="bold")
    for text in record["advice"]["why"]:
        console.print(visible(text), markup=False, highlight=False)
    if record["cost"] is not None:
        console.print(visible(cost_sentence(record["cost"])), markup=False, highlight=False)
    if asked.out is not None:
        print(asked.out / "preflight.html")


def cost_sentence(cost: Mapping[str, Any]) -> str:
    """The dry run's estimate in words."""
    if "unknown" in cost:
        return f"What {cost['method']} would cost is not known: {cost['unknown']}"
    return (
        f"{cost['method']} would take about {duration(cost['seconds'])} for its {cost['steps']:,} steps, "
        f"{mebibytes(max(cost['memory'], cost['sampling']))} of memory and {mebibytes(cost['disk'])} on disk "
        "(covrl train --dry-run)."
    )
