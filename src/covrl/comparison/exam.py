"""The evaluation of a cell's model: greedy and sampled answers, and log p(y|x,z) after the sampled traces."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from covrl import assembly
from covrl.comparison.cells import Cell
from covrl.config import ProblemsConfig
from covrl.evaluation.evaluate import EvaluationReport, evaluate
from covrl.problems.tasks import task_of
from covrl.prompt_checks import check_lengths, check_rows, check_tokens
from covrl.records import Problem, Request
from covrl.statistics import bootstrap_intervals
from covrl.training.held_out import answer_log_probs
from covrl.training.memory import with_fewer_rows
from covrl.training.rollouts import response_tokens
from covrl.training.run import Run

GRADED = ("greedy", "avg@n", "pass@", "unknown")
"""Prefixes of the figures that need a verdict."""


def source_of(problems: ProblemsConfig, cell: Cell) -> str:
    """The name of the source of problems that a cell is measured on."""
    source = problems.test if cell.exam.split == "test" else problems.held_out
    return source if isinstance(source, str) else source.source


def examine(run: Run, cell: Cell, problems: Sequence[Problem]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The figures of the run's model as it is, and those whose mean is reported problem by problem.

    The random numbers are those of ``covrl eval`` with the seed of the cell. Without a grader there is no accuracy.

    Raises:
        OutOfMemoryError: not even one row that is sampled fits.
    """
    assert run.evaluator is not None
    evaluator, (n, seed) = run.evaluator, (cell.exam.samples, cell.seed)
    asked = [Request(p.id, i, run.prompts.prior(p), "prior") for p in problems for i in range(max(n, 1))]
    most = response_tokens(run.prompts, run.config.generation)
    heat = run.config.generation.temperature
    found = with_fewer_rows(run, asked, most, lambda: evaluate(evaluator, problems, n, heat, seed))
    columns = found.columns() | _likelihood(run, found, problems)
    figures: dict[str, Any] = found.record() | {"log_prob": fmean(columns["log_prob"])}
    ends = bootstrap_intervals({"log_prob": columns["log_prob"], "trace_tokens": columns["trace_tokens"]})
    figures["intervals"] |= {name: list(pair) for name, pair in ends.items()}
    if evaluator.grade is None:
        figures = {name: value for name, value in figures.items() if not name.startswith(GRADED)}
        figures["intervals"] = {k: v for k, v in figures["intervals"].items() if not k.startswith(GRADED)}
        columns = {name: values for name, values in columns.items() if not name.startswith(GRADED)}
    return figures, columns


def _likelihood(run: Run, found: EvaluationReport, problems: Sequence[Problem]) -> dict[str, list[float]]:
    """Mean log p(y|x,z), nats, of each problem after its sampled traces (the greedy one if none was sampled).

    And the mean length of all its traces, in tokens.
    """
    scored = found.sampled or (found.greedy,)
    pairs = [(g.problem, g.rollout) for e in scored for g in e.graded]
    values = answer_log_probs(run, pairs)
    count, every = len(problems), (found.greedy, *found.sampled)
    return {
        "log_prob": [fmean(values[i::count]) for i in range(count)],
        "trace_tokens": [fmean(len(e.graded[i].rollout.trace_ids) for e in every) for i in range(count)],
    }


def problems_of(run: Run, cell: Cell, problems: ProblemsConfig) -> list[Problem]:
    """The problems that a cell is measured on, checked as those of a training are.

    ``problems`` are the present settings, whose ``test`` may have been set after the run began.

    Raises:
        UserError: the source cannot be read, or a problem of it does not suit the model.
    """
    if cell.exam.split != "test":
        return list(run.held_out[: cell.exam.problems])
    policy, found = run.models["policy"], assembly.problems_of(problems.test, problems)
    asked = found[: cell.exam.problems]
    check_tokens(run.prompts, asked)
    check_rows(run.prompts, policy.model.get_input_embeddings().weight.shape[0], asked)
    check_lengths(run.prompts, policy.context_length, run.config, asked)
    return asked


def chance_of(source: str) -> float | None:
    """The accuracy without the right procedure, if the source is an embedded task."""
    task = task_of(source)
    return task.chance() if task else None
