"""The Python API that the command line calls: build a run from settings, train it, write its folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import Setup
from covrl.config import RunConfig, to_toml
from covrl.errors import UserError
from covrl.evaluation.accuracy import Evaluator, Grader, TraceLabel, exact_text
from covrl.generation.engine import TorchGenerator
from covrl.problems.source import ProblemSource, shuffle_hints
from covrl.problems.tasks import find_task
from covrl.prompts import Prompts
from covrl.records import Problem, StepReport
from covrl.reporting.sinks import JsonlSink, Sink, TracesSink
from covrl.scoring.model import load_model
from covrl.training.loop import Run, Verifier


def build(
    config: RunConfig,
    problems: Sequence[Problem] | None = None,
    held_out: Sequence[Problem] | None = None,
    grade: Grader = exact_text,
    label: TraceLabel | None = None,
    verify: Verifier | None = None,
) -> Run:
    """Load the model and assemble a run that has not taken a step.

    Problems and labels come from ``problems.task`` unless problems are given. ``grade`` judges held-out answers and
    ``label`` names what traces do in the report: neither has a part in training. ``verify`` marks training traces
    right or wrong for methods that need it; CoVRL does not.

    Raises:
        UserError: a setting, the model, or a problem cannot be used.
    """
    if problems is None:
        task = find_task(config.problems.task)
        problems, label = task.problems(config.problems.train), label or task.label
        held_out = task.problems(config.problems.held_out) if held_out is None else held_out
    if config.problems.shuffle_hints:
        problems = shuffle_hints(problems, config.training.seed)
    source = ProblemSource(problems, config.training.seed)
    policy, tokenizer = load_model(config.model, config.generation.temperature)
    prompts = Prompts(tokenizer, config.prompts)
    generator = TorchGenerator(policy.model, tokenizer, config.generation.rows_per_pass)
    limits = config.generation
    return Run(
        config=config,
        algorithm=make_algorithm(config.algorithm, Setup(prompts, config.training.rollouts_per_problem)),
        models={"policy": policy},
        generator=generator,
        tokenizer=tokenizer,
        source=source,
        verify=verify,
        label=label,
        evaluator=Evaluator(generator, prompts, limits.max_trace_tokens, limits.max_answer_tokens, grade, label),
        held_out=held_out or (),
    )


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished (or interrupted) training: its folder, its reports, and the seconds it took."""

    run: Run
    folder: Path
    reports: list[StepReport] = field(default_factory=list)
    seconds: float = 0.0


def train(run: Run, folder: Path, sinks: Sequence[Sink] = ()) -> Trained:
    """Take all remaining steps, in a folder of :func:`new_run_folder`.

    Writes ``config.toml``, ``metrics.jsonl``, ``traces.jsonl`` and, when it ends for whatever reason, ``model/``.

    Raises:
        TrainingStoppedError: the method or a guard ended the run; what was done up to there is written.
    """
    (folder / "config.toml").write_text(to_toml(run.config), encoding="utf-8")
    start = time.perf_counter()
    reports: list[StepReport] = []
    all_sinks = [JsonlSink(folder / "metrics.jsonl"), TracesSink(folder / "traces.jsonl"), *sinks]
    with ExitStack() as cleanup:
        cleanup.callback(run.save, folder / "model")
        for sink in all_sinks:
            cleanup.callback(sink.close)
        for report in run.steps():
            reports.append(report)
            for sink in all_sinks:
                sink.write(report)
    return Trained(run, folder, reports, time.perf_counter() - start)


def new_run_folder(folder: Path) -> None:
    """Create the folder of a run.

    Raises:
        UserError: it cannot be written, or holds a run already.
    """
    if (folder / "config.toml").exists():
        raise UserError(f"{folder}: there is a run in this folder already; choose another one with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
