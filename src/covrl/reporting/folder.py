"""The report of a run from its folder alone, so that it can be made again at any time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covrl.config import read_toml
from covrl.errors import UserError
from covrl.records import StepReport
from covrl.reporting.sinks import read_steps
from covrl.reporting.summary import Note, ResultRow, RunSummary

SETTINGS, METRICS, TRACES = "config.toml", "metrics.jsonl", "traces.jsonl"

MEASURES = {
    "eval/accuracy": ("held-out accuracy, greedy", "share"),
    "eval/sampled": ("held-out accuracy, sampled", "share"),
    "eval/sound": ("held-out sound traces, greedy", "share"),
    "eval/log_prob": ("held-out log p(answer | question, trace)", "nats"),
    "reward/prior": ("reward of prior traces in training", ""),
}


def summary_of(folder: Path) -> RunSummary:
    """The content of a run's files: settings, curves, traces, and each held-out measure at its first and last
    evaluation.

    Raises:
        UserError: the folder holds no run, or nothing was recorded yet.
    """
    config = read_toml(folder / SETTINGS)
    if not (folder / METRICS).exists():
        raise UserError(f"{folder}: the run has recorded no step yet")
    return summary_from(folder, config, read_steps(folder / METRICS, folder / TRACES))


def summary_from(folder: Path, config: Mapping[str, Any], steps: Sequence[StepReport]) -> RunSummary:
    """The content of a run whose settings and steps were read from its folder."""
    name = _section(config, "algorithm").get("name", "run")
    return RunSummary(
        title=f"covrl: {folder.resolve().name}",
        subtitle=f"{name} on {_section(config, 'problems').get('train', 'given problems')}",
        headline=headline(steps, config),
        config=config,
        steps=steps,
        results=_first_and_last(steps),
        notes=_blind(steps),
    )


def _blind(steps: Sequence[StepReport]) -> list[Note]:
    """The note for a run that trained on a reward while no held-out answer was verified."""
    names = {name for step in steps for name in step.metrics}
    if not any(name.startswith("reward/") for name in names) or names & {"eval/sampled", "eval/accuracy"}:
        return []
    return [Note("the reward watch was blind: no held-out answer was verified, so nothing says what earned the reward")]


def headline(steps: Sequence[StepReport], config: Mapping[str, Any]) -> str:
    """How many steps are done, and of how many."""
    total = _section(config, "training").get("steps")
    done = steps[-1].step if steps else 0
    return f"{done} of {total} steps are done." if isinstance(total, int) and done < total else f"{done} steps."


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _first_and_last(steps: Sequence[StepReport]) -> list[ResultRow]:
    rows = []
    for metric, (label, unit) in MEASURES.items():
        seen = [(s.step, s.metrics[metric]) for s in steps if math.isfinite(s.metrics.get(metric, math.nan))]
        if len(seen) > 1:
            (first, before), (last, after) = seen[0], seen[-1]
            rows.append(ResultRow(label, before, after, note=f"at step {first} and at step {last}", unit=unit))
    return rows
