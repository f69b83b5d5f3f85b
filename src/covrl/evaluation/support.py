"""What training changed: which problems base and trained model can solve, and how varied the answers are.

The support metrics of "The Invisible Leash" (Wu et al., arXiv 2507.14843; CONFIRMED-text): a model *has* a problem at
budget n if at least one of n samples is right. Over problems, P are solved by both models, S by the base alone
(shrinkage), E by the trained model alone (expansion), and neither solves the rest:

    SRR = P/(P+S)    NDR = E/(P+E)    SDS = 2·SRR·NDR/(SRR+NDR)    NSCR = (E−S)/(P+E+S)        (0/0 counts as 0)

Use the same n, temperature, prompt, token limit and grader for both. S and E are small counts, dominated by borderline
problems: a problem with success rate p is missed by n samples with probability (1−p)^n. So compare with
:func:`deal_against_itself`, the base compared with itself, and with :func:`null_quantiles`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from covrl.statistics import Interval, quantile

Answer = str | None
"""A sample's answer in normal form; None for a sample without an answer."""


@dataclass(frozen=True, slots=True)
class Support:
    """Counts of problems: ``kept`` P, ``gained`` E, ``lost`` S, ``neither``; means over draws may be fractions.

    Example:
        >>> Support(kept=2388, gained=48, lost=175, neither=0).nscr
        -0.0486...
    """

    kept: float
    gained: float
    lost: float
    neither: float

    @property
    def srr(self) -> float:
        """Support retention rate: of what the base solves, the share that the trained model solves."""
        return _share(self.kept, self.kept + self.lost)

    @property
    def ndr(self) -> float:
        """Net discovery rate: of what the trained model solves, the share that the base does not."""
        return _share(self.gained, self.kept + self.gained)

    @property
    def sds(self) -> float:
        """Support dynamic score: the harmonic mean of the two rates."""
        return _share(2 * self.srr * self.ndr, self.srr + self.ndr)

    @property
    def nscr(self) -> float:
        """Net support change rate: below 0 the trained model has lost more problems than it has gained."""
        return _share(self.gained - self.lost, self.kept + self.gained + self.lost)


def support(base: Sequence[int], trained: Sequence[int]) -> Support:
    """The counts from the right samples of each problem: ``base[i]`` and ``trained[i]`` of equally many.

    Raises:
        ValueError: the two are of different lengths.
    """
    return _counted([(b > 0, t > 0) for b, t in zip(base, trained, strict=True)])


Outcomes = list[tuple[bool, bool]]
"""Problem by problem: whether the base solves it, and whether the other does."""

RATES = ("srr", "ndr", "sds", "nscr")
"""The figures that intervals are given for."""


def deal_against_itself(marks: Sequence[Sequence[bool]], seed: int = 0, draws: int = 200) -> list[Outcomes]:
    """The counts due to chance, draw by draw: one half of the base's samples against the other half.

    ``marks[i]`` says of each sample of problem ``i`` whether it is right.

    Raises:
        ValueError: a problem has fewer than two samples.
    """
    if any(len(row) < 2 for row in marks):
        raise ValueError("halves need at least two samples of each problem")
    rng = random.Random(f"halves/{seed}")
    return [[_dealt(len(row), sum(row), rng) for row in marks] for _ in range(draws)]


def deal_halves(
    base: Sequence[Sequence[bool]], trained: Sequence[Sequence[bool]], seed: int = 0, draws: int = 200
) -> list[Outcomes]:
    """Half of each model's samples against each other, draw by draw."""
    rng = random.Random(f"both halves/{seed}")

    pairs = list(zip(base, trained, strict=True))
    return [[(_dealt(len(b), sum(b), rng)[0], _dealt(len(t), sum(t), rng)[0]) for b, t in pairs] for _ in range(draws)]


def _dealt(samples: int, right: int, rng: random.Random) -> tuple[bool, bool]:
    """Whether each of two halves of a problem's samples has a right one, with the right ones at random places."""
    half = samples // 2
    if right == 0 or right > samples - half:
        return right > 0, right > 0
    places = rng.sample(range(samples), right)
    return any(p < half for p in places), any(half <= p < 2 * half for p in places)


def mean_support(deals: Sequence[Outcomes]) -> Support:
    """The counts, as means over draws."""
    found = [_counted(outcomes) for outcomes in deals]
    return Support(*(fmean(getattr(part, name) for part in found) for name in ("kept", "gained", "lost", "neither")))


def null_quantiles(deals: Sequence[Outcomes]) -> dict[str, Interval]:
    """Between which values 95 % of the draws of a null lie, for each rate: these problems, chance alone."""
    found = [_counted(outcomes) for outcomes in deals]
    return _ends({name: [getattr(part, name) for part in found] for name in RATES})


def rate_intervals(deals: Sequence[Outcomes], seed: int = 0, resamples: int = 2000) -> dict[str, Interval]:
    """The 95 % interval of each rate over problems, by the percentile bootstrap.

    The rates are ratios, so the counts of a resample are drawn together. Each resample takes its outcomes from another
    of the ``deals`` (one, where all samples were used), so that the interval includes the way samples were split.
    """
    rng = random.Random(f"support/{seed}")
    values: dict[str, list[float]] = {name: [] for name in RATES}
    for i in range(resamples):
        outcomes = deals[i % len(deals)]
        drawn = _counted(rng.choices(outcomes, k=len(outcomes)))
        for name in RATES:
            values[name].append(getattr(drawn, name))
    return _ends(values)


def _ends(values: dict[str, list[float]]) -> dict[str, Interval]:
    return {name: Interval(quantile(found, 0.025), quantile(found, 0.975)) for name, found in values.items()}


def _counted(outcomes: Outcomes) -> Support:
    pairs = Counter(outcomes)
    return Support(pairs[True, True], pairs[False, True], pairs[True, False], pairs[False, False])


def answer_entropy(answers: Sequence[Answer]) -> float:
    """Entropy in nats of a problem's answers as they were counted; no answer is a class of its own.

    It can fall while the entropy of tokens rises: more wordings, fewer different answers.
    """
    shares = [count / len(answers) for count in Counter(answers).values()]
    return -sum(p * math.log(p) for p in shares)


def maj_at_k(answers: Sequence[Answer], right: Sequence[bool], k: int, seed: int = 0, draws: int = 200) -> float:
    """How often the most frequent answer of ``k`` samples is right; tied answers count in part.

    ``right[i]`` is the verdict on ``answers[i]``. Samples without an answer have no vote. The mean over ``draws``
    seeded draws of ``k`` samples without replacement; where ``k`` is their number it is exact.

    Raises:
        ValueError: not 1 ≤ k ≤ number of samples.
    """
    samples = list(zip(answers, right, strict=True))
    if not 1 <= k <= len(samples):
        raise ValueError(f"maj@k needs 1 <= k <= {len(samples)} samples, found k={k}")
    if k == len(samples):
        return _majority(samples)
    rng = random.Random(f"majority/{seed}")
    return fmean(_majority(rng.sample(samples, k)) for _ in range(draws))


def _majority(samples: Sequence[tuple[Answer, bool]]) -> float:
    votes = Counter(answer for answer, _ in samples if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = {answer for answer, count in votes.items() if count == most}
    verdicts = {answer: mark for answer, mark in samples if answer in leaders}
    return sum(verdicts.values()) / len(leaders)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
