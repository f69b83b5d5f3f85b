"""The posterior gain: how much traces whose prompt showed the answer are worth over traces without it.

    gain = mean over problems of [ mean log p(y|x,z), z ~ q(z|x,y)  −  mean log p(y|x,z), z ~ p(z|x) ]       nats

The answer is scored from the prior prompt after both, so the two means differ only by the traces. A method that
samples posterior traces (CoVRL) pays for them with a second prompt to sample from, score and train under: without
a gain it is JEPO, which has one prompt, at twice the cost.

A trace that did not close has no answer likelihood. It is excluded from the means, so that the gain measures the traces
and not how often they close; the shares that closed are reported separately. A problem counts if traces of both prompts
closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from covrl.distributed.world import World
from covrl.evaluation.likelihood import answer_log_probs
from covrl.generation.base import Draw, Generator, Sampling, rest
from covrl.models.model import LanguageModel
from covrl.prompts import ROLES, Prompts, Role
from covrl.records import Problem, Request, Rollout
from covrl.statistics import Interval, bootstrap_interval, t_interval

FEWEST_PROBLEMS = 3
"""Problems with closed traces of both prompts below which nothing is concluded."""

BOOTSTRAP_FROM = 20
"""Problems from which an interval is a bootstrap; with fewer a bootstrap is too narrow, and Student's is used."""

WORTH_NATS = 1.0
"""Our choice: a gain below this with 95 % confidence counts as none; an interval that contains 0 and this,
undecided."""


FORMAT_SHARE = 0.25
"""Below this share of valid traces a warning says that the base does not know the format."""


class Worth(NamedTuple):
    """One trace: its problem's id, "prior" or "posterior", and log p(y|x,z) in nats (None: it did not close)."""

    problem: str
    source: str
    log_prob: float | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sampled trace and log p(y|x,z) in nats; None where it did not close."""

    problem: Problem
    rollout: Rollout
    log_prob: float | None

    @property
    def worth(self) -> Worth:
        return Worth(self.problem.id, self.rollout.source, self.log_prob)


@dataclass(frozen=True, slots=True)
class PosteriorGain:
    """``nats`` with its 95 % interval over problems, each None where there are too few; see the module's docstring.

    ``problems`` have closed traces of both prompts, of ``asked``; ``closed`` are shares of all traces by prompt.
    """

    nats: float | None
    interval: Interval | None
    problems: int
    asked: int
    closed: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """As plain data."""
        ends = list(self.interval) if self.interval else None
        found = {"nats": self.nats, "interval": ends, "problems": self.problems, "asked": self.asked}
        return found | {f"{role}_closed": share for role, share in self.closed.items()}


def posterior_gain(traces: Sequence[Worth], seed: int = 0) -> PosteriorGain:
    """The gain of some traces of both prompts.

    The interval is over problems (:func:`over_problems`): the traces of one problem stay together.

    Raises:
        ValueError: there are no traces of one of the prompts.
    """
    found: dict[str, dict[str, list[float]]] = {}
    counts: dict[str, list[int]] = {role: [0, 0] for role in ROLES}
    for trace in traces:
        counts[trace.source][0] += trace.log_prob is not None
        counts[trace.source][1] += 1
        rows = found.setdefault(trace.problem, {role: [] for role in ROLES})
        if trace.log_prob is not None:
            rows[trace.source].append(trace.log_prob)
    if not all(total for _, total in counts.values()):
        raise ValueError("a posterior gain needs traces of both prompts")
    each = [fmean(r["posterior"]) - fmean(r["prior"]) for r in found.values() if r["posterior"] and r["prior"]]
    interval = over_problems(each, seed) if len(each) >= FEWEST_PROBLEMS else None
    closed = {role: valid / total for role, (valid, total) in counts.items()}
    return PosteriorGain(fmean(each) if each else None, interval, len(each), len(found), closed)


def over_problems(values: Sequence[float], seed: int = 0) -> Interval | None:
    """The 95 % interval of the mean of a figure that each problem has one of; None for fewer than two problems."""
    return t_interval(values) if len(values) < BOOTSTRAP_FROM else bootstrap_interval(values, seed)


def gain_sentence(gain: PosteriorGain, method: str = "covrl") -> str:
    """What the gain means for sampling posterior traces with ``method``, as text."""
    shares = ", ".join(f"{role} {share:.0%}" for role, share in gain.closed.items())
    aside = f"traces that did not close are left out (closed: {shares})"
    if gain.nats is None or gain.interval is None:
        return (
            f"Whether posterior traces are worth more than prior ones is undecided: {gain.problems} of {gain.asked} "
            f"problems have closed traces of both prompts, and at least {FEWEST_PROBLEMS} are needed; {aside}."
        )
    low, high = gain.interval
    measured = f"(gain {gain.nats:.2f} nats, 95 % {low:.2f} to {high:.2f}, {gain.problems} problems)"
    if low > 0:
        return f"Posterior traces are worth more than prior ones here {measured}; {aside}."
    if high < WORTH_NATS:
        less = "less" if high < 0 else "no more"
        price = "CoVRL is JEPO at twice the price" if method == "covrl" else f"{method} pays for them and gets nothing"
        return f"Posterior traces are worth {less} than prior ones here {measured}: {price}; {aside}."
    return (
        f"Posterior traces are not shown to be worth more than prior ones here {measured}: too few problems to decide; "
        f"{aside}."
    )


def draw_roles(
    generator: Generator,
    model: LanguageModel,
    prompts: Prompts,
    problems: Sequence[Problem],
    sampling: Sampling,
    samples: int,
    seed: int,
    roles: Sequence[Role] = ROLES,
    rows_per_pass: int = 256,
    tokens_per_pass: int = 16384,
    world: World | None = None,
) -> list[Drawn]:
    """``samples`` traces a problem from each role's prompt, and ``model``'s log p of the answer after each."""
    found: list[Drawn] = []
    for pairs in sample_roles(generator, prompts, problems, sampling, samples, seed, roles, rows_per_pass):
        scores = answer_log_probs(model, prompts, pairs, tokens_per_pass, world=world)
        found += [Drawn(*pair, None if s is None else s.total) for pair, s in zip(pairs, scores, strict=True)]
    return found


def sample_roles(
    generator: Generator,
    prompts: Prompts,
    problems: Sequence[Problem],
    sampling: Sampling,
    samples: int,
    seed: int,
    roles: Sequence[Role] = ROLES,
    rows_per_pass: int = 256,
) -> Iterator[list[tuple[Problem, Rollout]]]:
    """The traces of :func:`draw_roles`, a few problems at a time; those of a problem follow each other by role."""
    prompt_of = {"prior": prompts.prior, "posterior": prompts.posterior}
    together = max(rows_per_pass // (samples * len(roles)), 1)
    for start in range(0, len(problems), together):
        asked = [(p, role) for p in problems[start : start + together] for role in roles for _ in range(samples)]
        requests = [
            Request(p.id, ROLES.index(role) * samples + i % samples, prompt_of[role](p), role)
            for i, (p, role) in enumerate(asked)
        ]
        rollouts = generator.generate(requests, sampling, Draw(seed, 0, "roles"))
        rest(generator)
        yield [(p, rollout) for (p, _), rollout in zip(asked, rollouts, strict=True)]
