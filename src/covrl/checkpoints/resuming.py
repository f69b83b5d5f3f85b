"""Is a resumed run still the same run? Settings, problems and versions against those of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covrl.algorithms import with_every_setting
from covrl.algorithms.base import Algorithm
from covrl.checkpoints.checkpoint import fingerprint, made_with
from covrl.config import AlgorithmTable, RunConfig
from covrl.errors import UserError
from covrl.files import manifest
from covrl.training.run import Run

ACCEPTED = {
    "training.steps": "the run ends there, and a falling learning rate falls towards it, from here on",
    "checkpoint.": "what is learnt stays the same",
    "report.": "what is learnt stays the same",
    "hub.": "what is learnt stays the same",
    "guards.": "what is watched; what is learnt stays the same, where no guard speaks",
    "evaluation.every": "what is learnt stays the same; the best model is chosen among the steps that are evaluated",
    "training.stream_norms_every": "the same up to rounding, no longer bit for bit",
    "training.weights": "the same up to rounding, no longer bit for bit",
    "training.recompute": "the same up to rounding, no longer bit for bit",
    "training.offload_moments": "what is learnt stays the same",
    "training.tokens_per_pass": "the same up to rounding, no longer bit for bit",
    "training.logits_mb_per_chunk": "the same up to rounding, no longer bit for bit",
    "generation.rows_per_pass": "the same up to rounding, no longer bit for bit",
    "model.compile": "the same up to rounding, no longer bit for bit",
    "model.offload_reference": "what is learnt stays the same",
    "generation.engine": "samples are drawn by another engine, or at another address: the same distribution up to "
    "what sampler/gap_mean measures, not the same samples",
    "generation.ahead": "traces are drawn with weights of up to so many steps before; what is estimated is corrected "
    "for it as far as generation.sampler_correction does, not the same samples",
    "generation.handover": "the same up to rounding, no longer bit for bit",
    "generation.engine_ranks": "the same up to rounding, no longer bit for bit",
    "training.load": "the same up to rounding, no longer bit for bit",
    "generation.engine_memory": "the same up to rounding, no longer bit for bit",
    "model.device": "the same up to rounding, no longer bit for bit",
}
"""Settings (or sections, with a dot at the end) that may change on a resume, and what the change does.

They say how long, where, in what portions and how closely watched; what the run estimates is not in them. Everything
else is refused: half a run with one setting and half with another is a run that nobody can describe.
``evaluation.problems`` and ``evaluation.verifier`` are refused too, as the best model's figure would then be compared
with figures on other problems.
"""


def check_config(state: Mapping[str, Any], now: RunConfig, method: type[Algorithm], where: Path) -> list[str]:
    """Notes on settings that differ from the checkpoint's and may; ``where`` is the file that has them.

    Raises:
        UserError: a setting differs that may not (names it, with both values), or is none of the method's.
    """
    before = state.get("config")
    if before is None:  # a checkpoint of format 1
        return []
    before, now = _with_every_setting(before, now, method, where)
    old, new = flat(before), flat(_declared(before, now))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    refused = [key for key in changed if why_it_may_change(key) is None]
    if refused:
        key, others = refused[0], refused[1:]
        also = f"; the same for {', '.join(others)}" if others else ""
        raise UserError(
            f"{where}: {key} is {new.get(key)!r}, but up to step {state['done']} the run was trained with "
            f"{old.get(key)!r}: put it back, or begin a new run{also}"
        )
    return [f"resumed with {k} = {new.get(k)!r} (it was {old.get(k)!r}): {why_it_may_change(k)}" for k in changed]


def check_inputs(state: Mapping[str, Any], run: Run) -> list[str]:
    """That the run still reads what it read; notes on what it cannot read again.

    Raises:
        UserError: the problems or the prompts' tokens are others than when the checkpoint was cut.
    """
    before, now = state.get("fingerprint"), fingerprint(run)
    if before is None:
        return []
    old_prompts = "date" not in (state.get("config") or {}).get("prompts", {})  # of f21ff7b and before
    changed = [name for name in now if now[name] != before.get(name)]
    if "problems.train" in changed or "problems.held_out" in changed:
        raise UserError(
            f"{changed[0]}: its problems are not those that the run was trained with up to step {state['done']}; give "
            "it the same ones, or begin a new run"
        )
    day = run.config.prompts.date
    if changed and not (day and old_prompts):
        raise UserError(
            "model.path: the same prompts are other tokens now than when the checkpoint was cut: its tokenizer or chat "
            "template changed, or this version of transformers or covrl renders them otherwise; go on with what the "
            "run began with, or begin a new run"
        )
    notes = []
    if changed:
        notes.append(f"its chat template writes the date, which this run had not kept; from here on it reads {day}")
    if old_prompts and run.algorithm.samples == "response":
        notes.append(
            "a response ends at prompts.answer_suffix only where an answer has begun; up to step "
            f"{state['done']} it ended at the first one"
        )
    return notes


def check_versions(folder: Path) -> list[str]:
    """A note if the checkpoint was made with other versions or another number of threads, which round differently."""
    try:
        before = manifest(folder).get("made_with", {})
    except ValueError:  # a checkpoint of format 1
        return []
    if not isinstance(before, dict):
        return []
    now = made_with()
    changed = [
        f"{name} {before[name]} then, {now[name]} now" for name in now if before.get(name, now[name]) != now[name]
    ]
    return [f"resumed, but not bit for bit: {', '.join(changed)}"] if changed else []


def why_it_may_change(key: str) -> str | None:
    """What the change of a setting does to a run that goes on; None where it is refused."""
    whole_section = f"{key.partition('.')[0]}."
    return ACCEPTED.get(key, ACCEPTED.get(whole_section))


def _with_every_setting(
    before: Mapping[str, Any], now: RunConfig, method: type[Algorithm], where: Path
) -> tuple[Mapping[str, Any], RunConfig]:
    """Both with all settings of the method: versions up to f21ff7b kept only those that were set."""
    table = before.get("algorithm", {})
    if table.get("name") != now.algorithm.name:
        return before, now
    every = with_every_setting(now.algorithm, method, where=f"{where}: ")
    kept = with_every_setting(AlgorithmTable(**table), method, where="the checkpoint's ")
    return {**before, "algorithm": kept.model_dump(mode="json")}, now.model_copy(update={"algorithm": every})


TAKEN_UP = frozenset({"prompts.date"})
"""What the first resume of a run of an older version sets, so that a checkpoint from before may be without it."""


def _declared(before: Mapping[str, Any], now: RunConfig) -> dict[str, Any]:
    """Today's settings without those that the checkpoint's version did not know, where they have their defaults."""
    table = now.model_dump(mode="json")
    defaults = RunConfig.model_validate({"model": {"path": "-"}}).model_dump(mode="json")
    for section, values in table.items():
        known = before.get(section, {})
        if section != "algorithm":
            table[section] = {
                k: v
                for k, v in values.items()
                if k in known or (v != defaults[section].get(k) and f"{section}.{k}" not in TAKEN_UP)
            }
    return table


def flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of settings as one table, by ``section.key``; what is not set is left out."""
    return {f"{s}.{k}": v for s, values in table.items() for k, v in values.items() if v is not None}
