"""What ends, skips or questions a step: numbers that are not finite, divergence, old weights in the generator.

The loop calls; nothing here takes a step. See docs/guards.md for what each guard promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from covrl.config import RunConfig
from covrl.config.conditions import parse_condition
from covrl.distributed.world import World
from covrl.errors import NonFiniteError
from covrl.guards.bundle import write_bundle
from covrl.guards.divergence import Divergence
from covrl.guards.publish_check import BothSides, PublishCheck, canary
from covrl.guards.reading_watch import ReadingWatch
from covrl.guards.reward_watch import RewardWatch
from covrl.guards.trace_watch import TraceWatch
from covrl.records import Credit, OffendingRollout, ScoredGroup
from covrl.rewards.named import Reward, not_finite


class Guard:
    """The guards of one run and what they remember: steps left out, recent metrics, the last look at the generator, the
    training reward beside held-out accuracy, how much the answer takes from its trace, what traces look like.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.skipped = 0
        self.divergence = Divergence([parse_condition(c) for c in config.guards.stop_when], config.guards.window)
        self.watch = RewardWatch()
        self.reading = ReadingWatch()
        self.traces = TraceWatch()
        self.stale: str | None = None
        self.publish = PublishCheck()

    def state_dict(self) -> dict[str, Any]:
        recent, watch = self.divergence.state_dict(), self.watch.state_dict()
        seen = {"reading": self.reading.state_dict(), "traces": self.traces.state_dict()}
        return {"skipped": self.skipped, "recent": recent, "watch": watch, **seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; of a checkpoint from before the guards, nothing."""
        self.skipped = int(state.get("skipped", 0))
        self.divergence.load_state_dict(state.get("recent", {}))
        self.watch.load_state_dict(state.get("watch", {}))
        self.reading.load_state_dict(state.get("reading", {}))
        self.traces.load_state_dict(state.get("traces", {}))

    def non_finite(self, error: NonFiniteError, step: int, update: int, folder: Path | None, world: World) -> str:
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
            world.on_rank0(lambda: write_bundle(kept, error.culprits, facts))
            text += f"; what it was made of is in {kept}"
        guards = self.config.guards
        if guards.non_finite == "stop":
            raise NonFiniteError(text, error.culprits)
        if self.skipped >= guards.skip_at_most:
            text += f"; {self.skipped} steps were left out before, as many as guards.skip_at_most allows"
            raise NonFiniteError(text, error.culprits)
        self.skipped += 1
        return f"step left out ({self.skipped} of at most {guards.skip_at_most}): {text}"

    def look_at_generator(self, sides: BothSides, first: bool = False) -> tuple[float, str | None]:
        """Compare trainer and generator on known rows; sets ``stale`` if they do not have the same weights.

        ``first``: change weights on purpose too, to see whether that is noticed. Returns the mean difference of their
        log-probs (nats a token; nan where the rows have no token), and a note where it would not be noticed.
        """
        note = None
        gap, self.stale = self.publish.look(sides)
        if first and not self.stale:
            self.stale, note = canary(sides)
            gap, self.stale = (gap, self.stale) if self.stale else self.publish.look(sides)
        return gap, note


def check_scores(groups: Sequence[ScoredGroup]) -> None:
    """Raises NonFiniteError if a score is NaN or +∞; −∞ is the log of a probability of zero, which rewards floor."""
    traces = [OffendingRollout(g.problem, r, s) for g in groups for r, s in zip(g.rollouts, g.scores, strict=True)]
    for output in {o: None for t in traces for o in t.scores.values}:
        parts = [(t, t.scores.values[output]) for t in traces if output in t.scores.values]
        if bool(_no_number(torch.cat([values for _, values in parts])).any()):
            bad, values = next((t, v) for t, v in parts if bool(_no_number(v).any()))
            said = float(values[_no_number(values)][0])
            raise NonFiniteError(f"the score {output.span}/{output.name} is {said} at {bad.name}", [bad])


def check_rewards(groups: Sequence[ScoredGroup], reward: Reward | None) -> None:
    """Raises NonFiniteError if one of the user's reward functions gave NaN or an infinity, or their sum is."""
    if reward is None:
        return
    for group in groups:
        for rollout, scores in zip(group.rollouts, group.scores, strict=True):
            wrong = not_finite(reward, rollout)
            if wrong:
                trace = OffendingRollout(group.problem, rollout, scores)
                raise NonFiniteError(f"{wrong} at {trace.name}", [trace])


def check_credits(groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> None:
    """Raises NonFiniteError if a reward, an advantage or a stream's weight is NaN or infinite."""
    traces = [
        OffendingRollout(g.problem, *trace)
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
