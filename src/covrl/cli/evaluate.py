"""What `covrl eval`, `leak`, `calibrate` and `prompts` do once their options are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from covrl import api
from covrl.cli.console import is_first
from covrl.cli.eval_results import tables, write_results
from covrl.cli.eval_run import Order, Outcome, evaluate_several
from covrl.cli.show import show_leaks, show_style, show_styles
from covrl.config import RunConfig
from covrl.errors import UserError
from covrl.evaluation.calibration import calibration, gain_beside, mark
from covrl.evaluation.evaluate import check_writable, write_traces
from covrl.evaluation.leaking import measure_leaks
from covrl.evaluation.posterior_gain import gain_sentence
from covrl.evaluation.signal import FORMS
from covrl.evaluation.styles import (
    check_style,
    recommend,
    recommend_template,
    template_wordings,
    try_style,
    wordings,
)
from covrl.files import write_file
from covrl.generation.base import Sampling
from covrl.generation.engine import TorchGenerator
from covrl.generation.engines import rows_of
from covrl.generation.proof import prove
from covrl.models.model import load_model
from covrl.problems.loading import load_problems
from covrl.prompt_checks import longest_row
from covrl.prompts import Prompts, dated
from covrl.reporting.reliability import grids, render_reliability
from covrl.reporting.tables import show_table
from covrl.reporting.text import visible
from covrl.rewards.code_tests import isolation_notes
from covrl.rewards.likelihood import Form

TRIED_TOKENS = 96
"""Token limit of a trace of `covrl prompts` if the settings allow more: about a minute with a small model."""


def run_eval(order: Order, out: Path | None, as_json: bool, traces: Path | None) -> None:
    """All of :func:`evaluate_several`, in the folder ``out``, and its tables; or one JSON line of figures."""
    if traces:
        if not order.single:
            raise UserError(
                "--traces is for one model and one --problems: else every trace is under --out, in samples/"
            )
        if is_first():
            check_writable(traces)
    out = out or Path("runs") / f"eval-{datetime.now():%Y%m%d-%H%M%S}"
    outcome = evaluate_several(order, out, _say if is_first() else lambda _: None)
    if outcome is None:  # another rank has all results
        return
    paths = write_results(out, outcome)
    if traces:
        (solved,) = outcome.solved.values()
        write_traces(traces, solved)
    if as_json:
        print(json.dumps(_figures_alone(order, outcome, out) if order.single else outcome.record))
        return
    console = Console()
    for table in tables(outcome.record):
        show_table(console, table)
    for path in paths:
        print(path)


def _figures_alone(order: Order, outcome: Outcome, out: Path) -> dict[str, Any]:
    (model,), (problems,) = order.models, order.problems
    figures = outcome.record["figures"][problems][model]
    return {"model": model, "problem_source": problems, "out": str(out)} | figures


def numbers(text: str) -> list[int]:
    """``1,4,8`` as numbers.

    Raises:
        UserError: one of them is not a number.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    for part in parts:
        if not part.isdecimal():
            raise UserError(
                f"--k {text}: expected whole numbers with commas between them, such as 1,4,16; found {part!r}"
            )
    return [int(part) for part in parts]


def _say(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """The options that `covrl leak`, `covrl calibrate` and `covrl prompts` share."""

    model: str
    problems: str
    config: Path | None
    settings: Sequence[str]
    n: int
    limit: int
    as_json: bool


def run_leak(asked: TraceRequest, traces: Path | None) -> None:
    """Sample and read traces, print the rates, the finding and examples.

    Raises:
        UserError: the model or the problems cannot be used.
    """
    if traces and is_first():
        check_writable(traces)
    checked = api.config_for(asked.model, asked.config, asked.settings)
    run = api.build_evaluation(checked, asked.problems)
    generation = checked.generation
    sampling = Sampling(generation.max_trace_tokens, checked.prompts.close, generation.temperature)
    problems = run.held_out[: asked.limit]
    seed, rows = checked.training.seed, rows_of(run.config.generation)
    report = measure_leaks(run.generator, run.prompts, problems, sampling, asked.n, seed, rows, run.evaluator)
    run.world.close()
    if not run.world.first:
        return
    record = {"model": asked.model, "problem_source": asked.problems} | report.record()
    if traces:
        with traces.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for r in report.reads:
                row: dict[str, Any] = {
                    "problem": r.problem.id,
                    "source": r.source,
                    "shown": r.problem.shown,
                    "trace": r.text,
                }
                row |= {"own": r.own, "shown_early": r.shown, "other": r.other, "admits": r.admits}
                row |= {"answered_own": r.said and r.said.own, "answered_foil": r.said and r.said.foil}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if asked.as_json:
        print(json.dumps(record))
        return
    show_leaks(Console(), record)


def run_prompts(asked: TraceRequest, max_tokens: int | None, templates: bool = False) -> None:
    """Try each style of wording on the first problems; print prompts, traces, figures and a recommendation.

    With ``templates`` it is the posterior templates that are tried, on the settings' own wording of all else.

    Raises:
        UserError: the model or the problems cannot be used, or no style can be.
    """
    config = api.config_for(asked.model, asked.config, asked.settings)
    problems = load_problems(asked.problems, config.problems.fields)[: asked.limit]
    tokens = max_tokens or min(config.generation.max_trace_tokens, TRIED_TOKENS)
    model, tokenizer = load_model(config.model, config.generation.temperature)
    generator = TorchGenerator(model.model, tokenizer, rows_of(config.generation))
    own = dated(config.prompts, tokenizer, date.today())
    tried_wordings = template_wordings(own) if templates else wordings(own)
    worded = {name: Prompts(tokenizer, wording) for name, wording in tried_wordings.items()}
    unusable: dict[str, str] = {}
    for name, prompts in worded.items():
        try:
            check_style(prompts, model, config, problems, tokens)
        except UserError as error:
            unusable[name] = str(error)
    usable = {name: prompts for name, prompts in worded.items() if name not in unusable}
    if not usable:
        name, why = next(iter(unusable.items()))
        kind = "templates" if templates else "styles"
        raise UserError(f"none of the {kind} can be used with this model and these problems: {name}: {why}")
    limits = config.generation.model_copy(update={"max_trace_tokens": tokens})
    tried_config = config.model_copy(update={"generation": limits})
    longest = max(longest_row(prompts, tried_config, problems) for prompts in usable.values())
    for note in (*model.given_up, *prove(model, generator, tokenizer, longest, config.model.path)):
        _say(note)
    console, tried = Console(), []
    for name, prompts in usable.items():
        _say(f"{name}: {2 * asked.n * len(problems)} traces of at most {tokens} tokens …")
        tried.append(try_style(name, generator, model, prompts, problems, config, asked.n, tokens))
        if not asked.as_json:
            show_style(console, tried[-1].record())
    best, sentences = recommend_template(tried) if templates else recommend(tried, tokens)
    record = {
        "model": asked.model, "problem_source": asked.problems, "problems": len(problems), "n": asked.n,
        "max_tokens": tokens, "styles": [t.record() for t in tried], "unusable": unusable, "recommended": best,
        "sentences": sentences,
    }  # fmt: skip
    if asked.as_json:
        print(json.dumps(record))
        return
    show_styles(console, record)


def reward_form(config: RunConfig) -> Form:
    """The form of log p(y|x,z) in the reward of the run's method; CoVRL's default for methods without one."""
    own = config.algorithm.settings.get("reward")
    return next((form for form in get_args(Form) if form == own), FORMS.get(config.algorithm.name, "sum"))


def run_calibrate(asked: TraceRequest, out: Path | None) -> None:
    """Score and grade prior traces, print the table and the sentence, write JSON and page.

    Raises:
        UserError: the model or the problems cannot be used, or there is no grader.
    """
    checked = api.config_for(asked.model, asked.config, asked.settings)
    if checked.evaluation.verifier == "none":
        raise UserError(
            "calibrate compares likelihoods with verified answers, and evaluation.verifier is none: "
            "--set evaluation.verifier=text (or exact, math)"
        )
    if out is not None and is_first():
        api.new_run_folder(out)
    run = api.build_evaluation(checked, asked.problems)
    for note in isolation_notes(checked.evaluation.verifier) if run.world.first else ():
        _say(note)
    assert run.evaluator is not None
    problems, seed = run.held_out[: asked.limit], checked.training.seed
    rows, temperature = rows_of(run.config.generation), checked.generation.temperature
    form = reward_form(checked)
    # at the trace's own temperature: the comparison with sampled answers is of draws from the p(.|x,z) that is scored
    evaluator, policy = replace(run.evaluator, answer_temperature=None), run.models["policy"]
    marked, traces = mark(evaluator, policy, problems, asked.n, temperature, seed, rows, form)
    gain = gain_beside(evaluator, policy, problems, asked.n, temperature, seed, rows, marked)
    run.world.close()
    if not run.world.first:
        return
    record: dict[str, Any] = {"model": asked.model, "problem_source": asked.problems, "n": asked.n}
    by = "conclusion" if evaluator.label is None else "sound"
    record |= calibration(marked, traces, seed, by, form)
    record["posterior_gain"] = gain.record() | {"sentence": gain_sentence(gain)}
    if out is not None:
        write_file(out / "calibration.json", json.dumps(record, indent=1))
        write_file(out / "calibration.html", render_reliability(record))
    if asked.as_json:
        print(json.dumps(record))
        return
    console = Console()
    for grid in grids(record):
        show_table(console, grid)
    console.print(visible(record["sentence"]), markup=False, highlight=False, style="bold")
    console.print(visible(record["posterior_gain"]["sentence"]), markup=False, highlight=False)
    if out is not None:
        print(out / "calibration.html")
