"""What ends, skips or questions a step: numbers that are not finite, divergence, old weights in the generator.

The loop calls; nothing here takes a step. See docs/guards.md for what each guard promises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from covrl.config import RunConfig
from covrl.errors import NonFiniteError
from covrl.evaluation.reward_watch import RewardWatch
from covrl.generation.base import Draw, Sampling
from covrl.generation.base import Generator as TraceGenerator
from covrl.prompts import Prompts
from covrl.records import Credit, Problem, Request, ScoredGroup
from covrl.rewards.functions import RewardFunction, name_of
from covrl.scoring.finite import broken
from covrl.scoring.head import log_prob
from covrl.scoring.model import Ids, LanguageModel
from covrl.scoring.text import trunk
from covrl.training.bundle import Culprit, write_bundle
from covrl.training.divergence import Divergence, parse_condition
from covrl.training.parallel import Solo
from covrl.training.watchdog import Watchdog

if TYPE_CHECKING:
    from covrl.training.loop import Run

PUBLISH_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.5}
"""Largest difference in log-probs (nats a token) of trainer and generator that rounding explains, by weights' dtype.
A cached, padded decoder and a plain forward round differently."""

PUBLISH_MOVED = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""A change of the trainer's log-probs that an engine with the new weights cannot have missed to the last bit."""

PROBE_TOKENS = 8


class Probe(NamedTuple):
    """One known row as both sides read it: sampled ids, the generator's log-probs, the trainer's."""

    ids: Ids
    generator: tuple[float, ...]
    trainer: tuple[float, ...]

    @property
    def gap(self) -> float:
        """Largest difference of the two, nats; nan if either is."""
        return _apart(self.generator, self.trainer)


class Guard:
    """The guards of one run and what they remember: steps left out, recent metrics, the last look at the generator, the
    training reward beside held-out accuracy.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.skipped = 0
        self.divergence = Divergence([parse_condition(c) for c in config.guards.stop_when], config.guards.window)
        self.watch = RewardWatch()
        self.stale: str | None = None
        self._probe: Probe | None = None

    def state_dict(self) -> dict[str, Any]:
        recent, watch = self.divergence.state_dict(), self.watch.state_dict()
        return {"skipped": self.skipped, "recent": recent, "watch": watch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; of a checkpoint from before the guards, nothing."""
        self.skipped = int(state.get("skipped", 0))
        self.divergence.load_state_dict(state.get("recent", {}))
        self.watch.load_state_dict(state.get("watch", {}))

    def non_finite(self, error: NonFiniteError, step: int, update: int, folder: Path | None, world: Solo) -> str:
        """Keep what is needed to see it again; a warning if the step may be left out. All ranks call it.

        Raises:
            NonFiniteError: it may not; with the whole message.
        """
        text = f"step {step}: {error}; no step was taken"
        if error.culprits and folder is not None:
            facts = {
                "message": str(error),
                "step": step,
                "update": update,
                "seed": self.config.training.seed,
                "config": self.config.model_dump(mode="json"),
            }
            kept = folder / "non-finite" / f"step-{step:06d}"
            world.led(lambda: write_bundle(kept, error.culprits, facts))
            text += f"; what it was made of is in {kept}"
        guards = self.config.guards
        if guards.non_finite == "stop":
            raise NonFiniteError(text, error.culprits)
        if self.skipped >= guards.skip_at_most:
            text += f"; {self.skipped} steps were left out before, as many as guards.skip_at_most allows"
            raise NonFiniteError(text, error.culprits)
        self.skipped += 1
        return f"step left out ({self.skipped} of at most {guards.skip_at_most}): {text}"

    def look_at_generator(self, run: Run) -> float:
        """Compare trainer and generator on one known row; sets ``stale`` if they do not have the same weights.

        Returns the largest difference of their log-probs (nats a token; nan where the row has no token).
        """
        model = run.models["policy"]
        before, self._probe = self._probe, probe(model, run.generator, run.prompts, run.source.problems[0], run.config)
        if self._probe.ids:
            dtype = model.compute_dtype or next(model.model.parameters()).dtype
            self.stale = stale_reason(before, self._probe, dtype)
        return self._probe.gap


@contextmanager
def watched(run: Run) -> Generator[Callable[[int], None]]:
    """With the watchdog, whose ``arm`` is yielded, and with a look at ``run.stopping`` before each forward."""
    seconds = run.config.guards.step_deadline_s
    dog = Watchdog(seconds, run.folder) if seconds else None

    def look(module: object, given: object) -> None:
        del module, given
        run.leave_if_asked()

    trunks = [trunk(model.model) for model in run.models.values()] if run.stopping else []
    hooks = [trunk.register_forward_pre_hook(look) for trunk in trunks]
    try:
        yield dog.arm if dog else lambda _: None
    finally:
        for hook in hooks:
            hook.remove()
        if dog:
            dog.disarm()


def probe(
    model: LanguageModel, generator: TraceGenerator, prompts: Prompts, problem: Problem, config: RunConfig
) -> Probe:
    """Sample one short row with a key that never changes, and read it with the trainer's weights.

    Raises:
        BrokenModelError: it cannot be sampled or read, as the model's numbers are not finite.
    """
    prompt = prompts.prior(problem)
    sampling = Sampling(PROBE_TOKENS, config.prompts.close, config.generation.temperature)
    request = Request(problem.id, 0, prompt, "prior")
    (rollout,) = generator.generate([request], sampling, Draw(config.training.seed, 0, "publish"))
    if not rollout.trace_ids:
        return Probe((), (), ())
    with torch.no_grad():
        hidden = model.hidden([prompt + rollout.trace_ids])[0, len(prompt) - 1 : -1]
        targets = torch.tensor(rollout.trace_ids, device=hidden.device)
        (read,) = log_prob([model.projection()(hidden)], targets)
    if bool(_no_number(read).any()):
        raise broken(model.model, f"the log-probs of a trace of problem {problem.id} are not finite when it is read")
    return Probe(rollout.trace_ids, rollout.log_probs, tuple(read.tolist()))


def stale_reason(before: Probe | None, now: Probe, dtype: torch.dtype) -> str | None:
    """Why the generator cannot have the trainer's weights, or None.

    Either the two differ by more than rounding, or the trainer's log-probs moved since the last look at the same ids
    while the generator's are the same to the last bit: small updates are below any tolerance for a long time.
    """
    allowed = PUBLISH_TOLERANCE.get(dtype, 0.5)
    told = "it samples from other weights than are trained; look at how the engine takes new weights"
    if not now.gap <= allowed:
        return (
            f"after publish the generator's log-probs of a known row differ from the trainer's by {now.gap:.2g} nats a "
            f"token (rounding explains {allowed:g}): {told}"
        )
    if before is None or before.ids != now.ids or before.generator != now.generator:
        return None
    moved = _apart(before.trainer, now.trainer)
    if moved <= PUBLISH_MOVED.get(dtype, 5e-2):
        return None
    return (
        f"after publish the generator's log-probs of a known row are what they were to the last bit, while the "
        f"trainer's moved by {moved:.2g} nats a token: {told}"
    )


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    if len(a) != len(b) or not a:
        return float("nan")
    return float((torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)).abs().max())


def check_scores(groups: Sequence[ScoredGroup]) -> None:
    """Raises NonFiniteError if a score is NaN or +∞; −∞ is the log of a probability of zero, which rewards floor."""
    traces = [Culprit(g.problem, r, s) for g in groups for r, s in zip(g.rollouts, g.scores, strict=True)]
    for output in {o: None for t in traces for o in t.scores.values}:
        parts = [(t, t.scores.values[output]) for t in traces if output in t.scores.values]
        if bool(_no_number(torch.cat([values for _, values in parts])).any()):
            bad, values = next((t, v) for t, v in parts if bool(_no_number(v).any()))
            said = float(values[_no_number(values)][0])
            raise NonFiniteError(f"the score {output.span}/{output.name} is {said} at {bad.name}", [bad])


def check_rewards(groups: Sequence[ScoredGroup], function: RewardFunction | None) -> None:
    """Raises NonFiniteError if a user's reward ``function`` gave NaN or an infinity."""
    for group in groups:
        for rollout, scores in zip(group.rollouts, group.scores, strict=True):
            if rollout.reward is not None and not math.isfinite(rollout.reward):
                trace = Culprit(group.problem, rollout, scores)
                said = f"the reward of {name_of(function)} is {rollout.reward} at {trace.name}"
                raise NonFiniteError(said, [trace])


def check_credits(groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> None:
    """Raises NonFiniteError if a reward, an advantage or a stream's weight is NaN or infinite."""
    traces = [
        Culprit(g.problem, *trace)
        for g, row in zip(groups, credits, strict=True)
        for trace in zip(g.rollouts, g.scores, row, strict=True)
    ]
    for trace in traces:
        assert trace.credit is not None
        for name, value in (("reward", trace.credit.reward), ("advantage", trace.credit.advantage)):
            if value is not None and not abs(value) < float("inf"):
                raise NonFiniteError(f"the {name} is {value} at {trace.name}", [trace])
    for stream in {name: None for t in traces if t.credit for name in t.credit.weights}:
        parts = [(t, t.credit.weights[stream]) for t in traces if t.credit and stream in t.credit.weights]
        if not bool(torch.isfinite(torch.cat([w for _, w in parts])).all()):
            bad, weight = next((t, w) for t, w in parts if not bool(torch.isfinite(w).all()))
            said = float(weight[~torch.isfinite(weight)][0])
            raise NonFiniteError(f"the {stream} weight is {said} at {bad.name}", [bad])


def _no_number(values: Tensor) -> Tensor:
    return torch.isnan(values) | torch.isposinf(values)
