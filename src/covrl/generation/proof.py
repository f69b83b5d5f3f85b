"""Check at load that decoding gives the log-probs of the model's own forward.

The same two stages as :mod:`covrl.models.proof`. In the first, rows of two short prompts and six rows of a long one
are decoded for up to 70 tokens, more than the initial buffer for keys and values. Some rows are removed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.generation.decoding import LONG, MANY, ROOM
from covrl.generation.engine import LADDER, NOT_REFILLED, DecodingPaths, TorchGenerator
from covrl.generation.recorded import Fixed
from covrl.models.compute import weights_ready
from covrl.models.model import LanguageModel, Paths
from covrl.models.proof import Row, Stage, Trial, ordinary_text, prove_scoring, reach_of, words
from covrl.models.text import rope_switches
from covrl.models.trust import tried

STEPS = ROOM + 6
"""Tokens decoded to check the logic: the buffer for keys grows on the way."""

FEW_STEPS = 8
"""Tokens decoded to compare numerics, and after short prompts."""

COMPARED = 2
"""Rows of a batch whose numerics are compared: the model's own forward on a long prompt is expensive."""


def prove(
    model: LanguageModel,
    engine: Any,
    tokenizer: Any,
    longest: int,
    source: str,
    world: World | None = None,
    stand_in: Callable[[], LanguageModel] | None = None,
) -> list[str]:
    """Check the paths of a model and, if it is the torch engine, of the engine that samples from it.

    ``longest``: tokens of the longest row that can come. All ranks of a ``world`` call it; the first has the weights.
    ``stand_in`` makes a model of the same kind for the first rank, where none has the weights.
    Returns one sentence for each path that was switched off, or that differs by more than usual.

    Raises:
        UserError: the model cannot be run; the message names its ``source``.
    """
    world, decodes = world or World(), isinstance(engine, TorchGenerator)
    said: list[str] = []

    def work() -> None:
        subject = stand_in() if stand_in else model
        text = ordinary_text(tokenizer, subject.model.get_input_embeddings().weight.shape[0])
        trial = Trial.of(subject, text, longest)
        said.extend(prove_scoring(trial))
        if decodes:
            own, engine.model = engine.model, subject.model
            said.extend(prove_decoding(engine, trial))
            engine.model = own
        model.paths, model.noise = subject.paths, subject.noise

    world.on_rank0(lambda: tried(f"model.path: cannot compute with {source!r}", work))
    model.paths, model.noise, said = world.broadcast((model.paths, model.noise, said))
    if decodes:
        engine.paths = world.broadcast(engine.paths)
    return said


@torch.no_grad()
def prove_decoding(engine: TorchGenerator, trial: Trial) -> list[str]:
    """Choose the fastest form of decoding that passes, in the engine's ``paths``.

    It is run with the engine's model, whose own paths are already checked. Returns one sentence for each form that
    failed.

    Raises:
        UserError: even whole rows without a cache give other log-probs than the model itself.
    """
    scoring, said = trial.model.paths, list[str]()
    try:
        for paths, loss in LADDER:
            if (paths.shared and not scoring.shared) or (paths.recorded and not engine.records):
                continue
            engine.paths = paths
            trouble = next((t for stage in trial.stages if (t := _trouble(engine, trial, stage, scoring))), None)
            if trouble is None:
                return said + prove_refilling(engine, trial, scoring)
            if loss is None:
                raise UserError(f"model {trial.name}: decoding does not agree with the model's own forward: {trouble}")
            said.append(f"model {trial.name}: {trouble}, so {loss}")
    finally:
        trial.model.paths = scoring
    raise AssertionError("the ladder's last rung raises")


def prove_refilling(engine: TorchGenerator, trial: Trial, scoring: Paths) -> list[str]:
    """Whether prompts can take the places of finished rows, in the engine's ``paths``; a sentence if they cannot."""
    if not engine.paths.shared:
        return []
    engine.paths = engine.paths._replace(refilled=True)
    found = (_trouble_refilled(engine, trial, stage, scoring) for stage in trial.stages)
    trouble = next((t for t in found if t), None)
    if trouble is None:
        return []
    engine.paths = engine.paths._replace(refilled=False)
    return [f"model {trial.name}: {trouble}, so {NOT_REFILLED}"]


def _trouble(engine: TorchGenerator, trial: Trial, stage: Stage, scoring: Paths) -> str | None:
    """What is wrong with the engine's paths in one stage, or None."""
    one = _engine_of(stage, engine)
    for rows, leave, stepwise in _batches(stage, engine.paths, trial):
        stage.model.paths = scoring
        try:
            found = forced_log_probs(one, rows, leave)
        except Exception as error:  # whatever a model cannot do is reported, and the next form is tried
            return f"decoding {one.paths.text} fails ({_said(error)})"
        compared = rows[:COMPARED] if stage.mean else rows
        if stepwise:
            own = [_step_log_probs(stage, row) for row in compared]
        else:
            own = [o[: len(f)] for o, f in zip(trial.own(stage, compared), found, strict=False)]
        if complaint := stage.complaint(stage.gap(found[: len(own)], own)):
            return f"decoding {one.paths.text} gives log-probs that {complaint}"
    return None


def _trouble_refilled(engine: TorchGenerator, trial: Trial, stage: Stage, scoring: Paths) -> str | None:
    """What is wrong in one stage where the last row of a batch takes the place of the first, or None.

    Of three rows, of which two have one prompt, it has a new prompt or another row's.
    """
    one = _engine_of(stage, engine)
    for rows in (batch.rows for batch in _batches(stage, engine.paths, trial) if not batch.stepwise):
        own = trial.own(stage, rows[:COMPARED] if stage.mean else rows)
        for order in ((0, 1, 2), (0, 2, 1)) if len(rows) == 3 else (range(len(rows)),):
            stage.model.paths = scoring
            try:
                refilled = refilled_log_probs(one, [rows[i] for i in order], len(rows) - 1)
            except Exception as error:
                return f"decoding {one.paths.text} with refilled places fails ({_said(error)})"
            found = dict(zip(order, refilled, strict=True))
            pairs = [(found[i][: len(o)], o[: len(found[i])]) for i, o in enumerate(own)]
            if complaint := stage.complaint(stage.gap([f for f, _ in pairs], [o for _, o in pairs])):
                return f"decoding {one.paths.text} with refilled places gives log-probs that {complaint}"
    return None


def _engine_of(stage: Stage, engine: TorchGenerator) -> TorchGenerator:
    """An engine with the stage's model and the paths of ``engine``."""
    one = TorchGenerator(stage.model.model, engine.tokenizer, engine.rows_per_pass)
    one.paths = engine.paths
    return one


def _said(error: Exception) -> str:
    """An error's kind and the beginning of its first line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def _step_log_probs(stage: Stage, row: Row) -> Tensor:
    """Log-probs ``[T]`` of a row's tokens after its prompt, each by the model's own forward on what is before it."""
    (ids, prompt), device = row, stage.model.device
    stage.model.paths = stage.model.paths._replace(shared=False)
    read = [torch.tensor([ids[:length]], device=device) for length in range(prompt, len(ids))]
    last = torch.stack([stage.model.model(input_ids=part, use_cache=False).logits[0, -1] for part in read])
    wide = last if last.dtype == torch.float64 else last.float()
    return torch.log_softmax(wide, -1).gather(1, torch.tensor(ids[prompt:], device=device)[:, None])[:, 0]


class Batch(NamedTuple):
    """Rows of a batch, and for each step the rows that continue after it.

    ``stepwise``: the model's own log-prob of a token depends on the length of the row so far.
    """

    rows: list[Row]
    leave: Mapping[int, Sequence[int]]
    stepwise: bool = False


def _batches(stage: Stage, paths: DecodingPaths, trial: Trial) -> list[Batch]:
    reach, text = reach_of(trial.model, trial.longest), trial.text
    few, many = (FEW_STEPS, FEW_STEPS) if stage.mean else (FEW_STEPS, STEPS)
    few, many = min(few, max(reach - 3, 1)), min(many, max(reach - 3, 1))
    long, short = min(23, max(reach - few, 2)), min(9, max(reach - few, 1))
    prompts = [words(text, 0, long), words(text, 50, short if paths.padded else long), words(text, 0, long)]
    rows = [((*p, *words(text, 70 + 29 * i, few)), len(p)) for i, p in enumerate(prompts)]
    batches = [Batch(rows, {1: (1, 0)})]
    length = min(reach - many, LONG + 8) if stage.mean else reach - many
    if length > long:
        prompt = words(text, 20, length)
        rows = [((*prompt, *words(text, 80 + 23 * i, many)), len(prompt)) for i in range(MANY + 2)]
        batches.append(Batch(rows, {2: (0, 2, 3, 4, 5), many // 2: (4, 1, 0)}))
    for switch in () if stage.mean else rope_switches(trial.model.model.config):
        if few < switch < reach:
            ids = words(text, 11, switch + few // 2)
            batches.append(Batch([(ids, len(ids) - few)], {}, stepwise=True))
    return batches


def forced_log_probs(engine: TorchGenerator, rows: Sequence[Row], leave: Mapping[int, Sequence[int]]) -> list[Tensor]:
    """Log-probs of each row's tokens after its prompt as decoding them gives, ``[T]``, fewer for removed rows.

    ``leave[step]`` are the indices, among the remaining rows, of those that continue after this step.
    """
    taken: list[list[Tensor]] = [[] for _ in rows]
    there = list(range(len(rows)))
    steps = min(len(ids) - prompt for ids, prompt in rows)
    device = next(engine.model.parameters()).device
    with torch.no_grad(), weights_ready(engine.model):
        logits, state = engine.prefill([ids[:prompt] for ids, prompt in rows], steps)
        for step in range(steps):
            tokens = torch.tensor([rows[i][0][rows[i][1] + step] for i in there], device=device)
            wide = logits if logits.dtype == torch.float64 else logits.float()
            chosen = torch.log_softmax(wide, -1).gather(1, tokens[:, None])[:, 0]
            for i, value in zip(there, chosen, strict=True):
                taken[i].append(value)
            if step + 1 == steps:
                break
            if step in leave:
                kept = torch.tensor(leave[step], device=device)
                there = [there[i] for i in leave[step]]
                tokens = tokens[kept]
                state.select(kept)
            logits = state.advance(engine.model, tokens)
    return [torch.stack(values) for values in taken]


@torch.no_grad()
def refilled_log_probs(engine: TorchGenerator, rows: Sequence[Row], together: int) -> list[Tensor]:
    """Log-probs of each row's tokens after its prompt, ``[T]``, where ``together`` rows are decoded side by side.

    The first rows end after one token, two tokens and so on, and the others take their places.
    """
    taken: list[list[Tensor]] = [[] for _ in rows]
    whole = min(len(ids) - prompt for ids, prompt in rows)
    ends = [min(i + 1, whole) if i < len(rows) - together else whole for i in range(len(rows))]
    there, begun = list(range(together)), together
    device = next(engine.model.parameters()).device
    with weights_ready(engine.model):
        logits, state = engine.prefill([ids[:prompt] for ids, prompt in rows[:together]], whole, waiting=True)
        assert isinstance(state, Fixed)
        while True:
            tokens = torch.tensor(
                [rows[i][0][rows[i][1] + min(len(taken[i]), whole - 1)] for i in there], device=device
            )
            wide = logits if logits.dtype == torch.float64 else logits.float()
            chosen = torch.log_softmax(wide, -1).gather(1, tokens[:, None])[:, 0]
            open_before = [len(taken[i]) < ends[i] for i in there]
            for i, value, still in zip(there, chosen, open_before, strict=True):
                taken[i] += [value] if still else []
            done = [place for place, i in enumerate(there) if len(taken[i]) == ends[i]]
            if len(done) == len(there) and begun == len(rows):
                break
            if ended := [place for place in done if open_before[place]]:
                state.pause(ended)
            for place in done[: len(rows) - begun]:
                ids, prompt = rows[begun]
                tokens[place] = state.refill(engine.model, [place], [ids[:prompt]])[0]
                there[place], begun = begun, begun + 1
            logits = state.advance(engine.model, tokens)
    return [torch.stack(values) for values in taken]
