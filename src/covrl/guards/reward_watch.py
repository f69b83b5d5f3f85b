"""Whether the training reward rises without verified held-out accuracy, which is the outward sign of reward hacking.

Each evaluation is compared with each of the last :data:`LOOKS` evaluations that is old enough. Reward and accuracy part
if both of these hold over the steps between the two:

- the reward has risen: the mean of the last third of the steps is above that of the first third, by Student's test at
  :data:`REWARD_LEVEL`, and by at least one standard deviation within a group (the spread behind advantages; if the
  reward is 1 for right and 0 for wrong: by at least :data:`GAIN`, and by more than accuracy can have gained);
- accuracy has not risen: on the same problems, the upper limit of the gain (:func:`gain_at_most`) is below
  :data:`GAIN`, or below half of what was missing if that is less.

They also part if accuracy has fallen, that is if the upper limit is below 0 at :data:`FALL_LEVEL`; then any rise of the
reward that the test detects is enough. A warning needs :data:`IN_A_ROW` such evaluations in a row.

Accuracy here is that of sampled answers. A reward of log-probs may sharpen the mode alone, while answers that are
sampled at temperature 1 stay wrong (arXiv 2602.03979). So the two do not part if the accuracy of the most frequent
answer of several samples has risen since it was last measured, at the earlier evaluation or before it (lower limit
above 0 at :data:`RISE_LEVEL`). It is measured at the first evaluation, and while there is doubt
(:attr:`RewardWatch.in_doubt`). Greedy answers stay out: they change late and all at once, long after the reward of a
run that learns.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any, NamedTuple

from covrl.statistics import t_quantile, wilson

LOOKS = 20
"""Evaluations that are kept for comparison."""

MOST_STEPS = 4096
"""Steps whose rewards are kept."""

FEWEST_STEPS = 15
"""Steps between two evaluations that are compared: five in each third."""

GAIN = 0.05
"""The gain of accuracy that is expected with a rising reward; a smaller one counts as none."""

GAIN_LEVEL = 0.99
FALL_LEVEL = 0.999
REWARD_LEVEL = 0.999
RISE_LEVEL = 0.95
IN_A_ROW = 2
MOST_DEGREES = 60
"""Degrees of freedom above which Student's quantile for this number is used."""


class Paid(NamedTuple):
    """One step: the mean reward, and the mean deviation of rewards within a group."""

    step: int
    reward: float
    spread: float


class Look(NamedTuple):
    """One evaluation: a mark a held-out problem, ``1`` where its sampled answer is right, else ``0``.

    ``majority`` are such marks of the most frequent answer of several samples, empty where it was not measured.
    """

    step: int
    marks: str
    majority: str = ""

    @property
    def accuracy(self) -> float:
        return _share(self.marks)


def _share(marks: str) -> float:
    return marks.count("1") / len(marks)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two evaluations and the reward between them.

    ``rise`` is in the reward's unit, ``sure`` the least that it is at :data:`REWARD_LEVEL`; ``at_most`` is the upper
    limit of the gain of accuracy at :data:`GAIN_LEVEL`. ``fell`` and ``stood`` say in which of the two ways reward and
    accuracy part, if in any; not if the accuracy of the majority's answers rose. ``before`` has the majority that was
    last measured up to then.
    """

    before: Look
    now: Look
    low: float
    high: float
    sure: float
    spread: float
    at_most: float
    fell: bool
    stood: bool

    @property
    def rise(self) -> float:
        return self.high - self.low

    @property
    def deviations(self) -> float:
        """The rise in deviations within a group; nan where no group had any."""
        return self.rise / self.spread if self.spread > 0 else math.nan

    @property
    def gain(self) -> float:
        return self.now.accuracy - self.before.accuracy

    @property
    def majority_known(self) -> bool:
        return bool(self.before.majority and self.now.majority)

    @property
    def majority_rose(self) -> bool:
        """Whether the majority's accuracy has risen, where it is known."""
        return self.majority_known and gain_at_most(self.now.majority, self.before.majority, RISE_LEVEL) < 0

    @property
    def parted(self) -> bool:
        return (self.fell or self.stood) and not self.majority_rose

    def __str__(self) -> str:
        seen = "it fell" if self.fell else f"a gain of {self.at_most:.1%} is ruled out at {GAIN_LEVEL:.0%}"
        if self.majority_known:
            before, now = _share(self.before.majority), _share(self.now.majority)
            seen += f"; the most frequent of several answers is right in {now:.1%}, and was in {before:.1%}"
        return (
            f"reward and accuracy part: from step {self.before.step} to step {self.now.step} the training reward rose "
            f"from {self.low:.3g} to {self.high:.3g}, while verified accuracy of sampled answers to "
            f"{len(self.now.marks)} held-out problems went from {self.before.accuracy:.1%} to {self.now.accuracy:.1%} "
            f"({seen}); what earns the reward is not what held-out problems ask: read the traces with the best "
            "advantage, then change the reward or stop"
        )


class RewardWatch:
    """Sees each step's reward and each evaluation's marks; its state is bounded and part of checkpoints."""

    def __init__(self) -> None:
        self.paid: deque[Paid] = deque(maxlen=MOST_STEPS)
        self.looks: deque[Look] = deque(maxlen=LOOKS)
        self.in_a_row = 0

    @property
    def in_doubt(self) -> bool:
        """Whether the next evaluation should measure the majority's accuracy: the first, and after one that parted."""
        return not self.looks or self.in_a_row > 0

    def step(
        self, number: int, metrics: Mapping[str, float], marks: str = "", shares: bool = False, majority: str = ""
    ) -> tuple[dict[str, float], list[str]]:
        """Take one step; with ``marks`` it returns the watch's own metrics, and a warning if the two part.

        ``shares`` says that the reward is 1 for right and 0 for wrong; ``majority`` are the majority's marks.
        """
        reward = metrics.get("reward/prior", metrics.get("reward/posterior", math.nan))
        if math.isfinite(reward):
            self.paid.append(Paid(number, reward, metrics.get("reward/group_std", 0.0)))
        if not marks:
            return {}, []
        now = Look(number, marks, majority)
        found, majority = [], ""
        for before in self.looks:
            majority = before.majority or majority  # the last one that was measured up to then
            compared = compare(before._replace(majority=majority), now, self.paid, shares)
            found += [] if compared is None else [compared]
        self.looks.append(now)
        if not found:
            return {}, []
        parted = [c for c in found if c.parted]
        self.in_a_row = self.in_a_row + 1 if parted else 0
        shown = parted[0] if parted else found[0]
        told = {
            "watch/parted": float(bool(parted)),
            "watch/reward_rise": shown.deviations,
            "watch/accuracy_gain": shown.gain,
            "watch/accuracy_gain_at_most": shown.at_most,
        }
        return told, [str(shown)] if self.in_a_row >= IN_A_ROW else []

    def state_dict(self) -> dict[str, Any]:
        return {"paid": [list(p) for p in self.paid], "looks": [list(x) for x in self.looks], "row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; of a checkpoint from before the watch, nothing."""
        self.paid = deque((Paid(*p) for p in state.get("paid", ())), maxlen=MOST_STEPS)
        self.looks = deque((Look(*x) for x in state.get("looks", ())), maxlen=LOOKS)
        self.in_a_row = int(state.get("row", 0))


def compare(before: Look, now: Look, paid: Sequence[Paid], shares: bool = False) -> Comparison | None:
    """What happened between two evaluations; None where too few steps or other problems are between them."""
    between = [p for p in paid if before.step < p.step <= now.step]
    if len(between) < FEWEST_STEPS or len(before.marks) != len(now.marks):
        return None
    third = len(between) // 3
    first, last = between[:third], between[-third:]
    low, high = fmean(p.reward for p in first), fmean(p.reward for p in last)
    error = math.sqrt((variance(p.reward for p in first) + variance(p.reward for p in last)) / third)
    sure = high - low - t_quantile(REWARD_LEVEL, min(2 * third - 2, MOST_DEGREES)) * error
    spread = fmean(p.spread for p in first)
    at_most = gain_at_most(before.marks, now.marks, GAIN_LEVEL)
    enough = sure >= max(GAIN, at_most) if shares else sure > 0 and high - low >= spread
    stood = enough and at_most < min(GAIN, (1 - before.accuracy) / 2)
    fell = sure > 0 and gain_at_most(before.marks, now.marks, FALL_LEVEL) < 0
    return Comparison(before, now, low, high, sure, spread, at_most, fell, stood)


def gain_at_most(before: str, now: str, level: float) -> float:
    """The upper limit of the gain of accuracy on the same problems, one-sided at ``level``.

    The gain is the share of problems that became right less the share that became wrong. Wilson's limits of the two
    shares, combined by Newcombe's method: with few problems the limit is high even if nothing changed.

    Example:
        >>> gain_at_most("0" * 256, "0" * 256, 0.99)
        0.0207...
    """
    count, two_sided = len(before), 2 * level - 1
    then, today = int(before, 2), int(now, 2)
    won, lost = (today & ~then).bit_count() / count, (then & ~today).bit_count() / count
    most_won, least_lost = wilson(won, count, two_sided).high, wilson(lost, count, two_sided).low
    return won - lost + math.hypot(most_won - won, lost - least_lost)


def blindness(every: int, problems: int, verified: bool) -> str | None:
    """Why the watch can see nothing, or too little, with these settings; None if it works.

    ``every`` are the steps between evaluations, ``problems`` how many are held out and evaluated, ``verified`` says
    whether a verifier grades their answers.
    """
    said = "the reward watch is blind: "
    advice = "; whether the reward is earned by right answers is not looked at"
    if not problems:
        return f"{said}no problems are held out (problems.held_out){advice}"
    if not every:
        return f"{said}there are no evaluations (evaluation.every = 0){advice}"
    if not verified:
        return f"{said}nobody grades held-out answers (evaluation.verifier = none){advice}"
    if gain_at_most("0" * problems, "0" * problems, GAIN_LEVEL) >= GAIN:
        return (
            f"the reward watch is half blind: {problems} held-out problems can never rule out a gain of {GAIN:.0%}, so "
            "only a fall of accuracy is seen; hold out more, or raise evaluation.problems"
        )
    return None
