"""`covrl leak`: do posterior traces give away the answer that they were shown?

Three sets of traces of the same problems are searched: under the prior prompt, which shows no answer; under the
posterior prompt; and under the posterior prompt with another problem's answer in it (the shuffled control). There are
two signs: the answer occurs, in any spelling, in the first quarter of the text
(:func:`covrl.rewards.leak.states_early`), and the text admits that an answer was given (:data:`PHRASES`). Neither is
proof in a single trace: short answers appear early by chance. So each rate is compared with the same rate for another
problem's answer, and with that of prior traces. What the shown answer does to the answers that follow, without being
stated, is in :mod:`covrl.evaluation.anchoring`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from covrl.errors import UserError
from covrl.evaluation.accuracy import Evaluator
from covrl.evaluation.anchoring import Said, anchoring, answers_said
from covrl.generation.base import Draw, Generator, Sampling
from covrl.problems.source import shuffle_hints
from covrl.prompts import Prompts
from covrl.records import Problem, Request
from covrl.rewards.leak import other_answers, states_early
from covrl.statistics import bootstrap_intervals

PHRASES: tuple[str, ...] = (
    r"(?:given|provided|reference|supplied|expected|target|stated) (?:final |correct )?answer",
    r"reference (?:solution|result)",
    r"answer (?:is|was|has been) (?:already )?(?:given|provided|known|supplied|stated)\b(?! by)",
    r"(?:told|given|know|known) that the (?:final |correct )?answer (?:is|was|should be|must be)",
    r"match(?:es|ed|ing)? the (?:\w+ )?answer",
    r"(?:the|a|this) hint\b",
    r"work(?:ing)? back(?:wards?)? from the answer",
)
"""Phrases that admit that an answer was shown, as regular expressions; case does not matter. The list is short and
English: it misses other wordings and other languages, so a rate of 0 is no proof. "arrive at the answer" is ordinary
and not in it."""

_ADMITS = re.compile("|".join(PHRASES), re.IGNORECASE)

SOURCES = ("prior", "posterior", "shuffled")
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Read:
    """One trace and what was found in it.

    ``own``, ``shown`` and ``other`` say whether the problem's answer, the answer that the prompt showed (None for the
    prior) and a different problem's answer occur early in it. ``admits`` is the phrase that admits, or None.
    ``said`` is what was answered after it; None where that is not known.
    """

    problem: Problem
    source: str
    text: str
    own: bool
    shown: bool | None
    other: bool
    admits: str | None
    said: Said | None = None


@dataclass(frozen=True, slots=True)
class LeakReport:
    """All traces that were read."""

    reads: tuple[Read, ...]
    samples: int

    def record(self) -> dict[str, Any]:
        """Shares of traces by source with 95 % intervals over problems, and the excess over another's answer."""
        rates: dict[str, dict[str, Any]] = {}
        for source in SOURCES:
            columns = self._columns(source)
            found: dict[str, Any] = {name: fmean(values) for name, values in columns.items()}
            ends = bootstrap_intervals(columns)
            rates[source] = found | {"intervals": {name: list(interval) for name, interval in ends.items()}}
        examples = [
            {"problem": r.problem.id, "source": r.source, "question": r.problem.question, "shown": r.problem.shown}
            | {"early": bool(r.shown), "admits": r.admits, "trace": r.text}
            for r in self.examples()
        ]
        found = {"problems": len(self.reads) // (self.samples * len(SOURCES)), "n": self.samples, "rates": rates}
        found |= {"sentence": sentence(rates), "anchoring": self.anchoring()}
        return found | {"phrases": list(PHRASES), "examples": examples}

    def anchoring(self) -> dict[str, Any] | None:
        """The pulls of a wrong and of the right hint on answers; None where no answer is known."""
        said: dict[str, dict[str, list[Said]]] = {}
        for r in self.reads:
            if r.said is not None:
                said.setdefault(r.problem.id, {}).setdefault(r.source, []).append(r.said)
        return anchoring(said) if said else None

    def examples(self) -> list[Read]:
        """The first traces that admit, then the first that state what they were shown, then clean ones.

        One of each kind per problem, because the traces of a problem are often similar.
        """
        behind = [r for r in self.reads if r.source == "posterior"]
        kinds: dict[str, dict[str, Read]] = {"admits": {}, "early": {}, "clean": {}}
        for r in behind:
            kind = "admits" if r.admits else "early" if r.shown else "clean"
            kinds[kind].setdefault(r.problem.id, r)
        return [r for found in kinds.values() for r in list(found.values())[:EXAMPLES]]

    def _columns(self, source: str) -> dict[str, list[float]]:
        """Each rate problem by problem."""
        rows: dict[str, list[Read]] = {}
        for read in self.reads:
            if read.source == source:
                rows.setdefault(read.problem.id, []).append(read)
        columns = {
            "own_early": [fmean(r.own for r in row) for row in rows.values()],
            "other_early": [fmean(r.other for r in row) for row in rows.values()],
            "excess": [fmean(float(r.own) - float(r.other) for r in row) for row in rows.values()],
            "admits": [fmean(r.admits is not None for r in row) for row in rows.values()],
        }
        if source != "prior":
            columns["shown_early"] = [fmean(bool(r.shown) for r in row) for row in rows.values()]
        return columns


def measure_leaks(
    generator: Generator,
    prompts: Prompts,
    problems: Sequence[Problem],
    sampling: Sampling,
    samples: int,
    seed: int,
    rows_per_pass: int = 256,
    answering: Evaluator | None = None,
) -> LeakReport:
    """Sample ``samples`` traces a problem and source, and read them; and what ``answering`` says after each.

    Raises:
        UserError: there are no two problems with different answers, so that there is nothing to compare with.
    """
    if len({p.answer for p in problems}) < 2:
        raise UserError("leak: all problems have the same answer, so there is no other answer to compare with")
    shuffled = shuffle_hints(problems, seed)
    others = other_answers([p.answer for p in problems])
    reads: list[Read] = []
    ranks = answering.world.size if answering is not None else 1
    together = max(ranks * rows_per_pass // (samples * len(SOURCES)), 1)
    for start in range(0, len(problems), together):
        asked = [
            (shown, others[start + i], source)
            for i, problem in enumerate(problems[start : start + together])
            for source, shown in (("prior", problem), ("posterior", problem), ("shuffled", shuffled[start + i]))
        ]
        requests = [
            Request(
                shown.id,
                SOURCES.index(source) * samples + index,
                prompts.prior(shown) if source == "prior" else prompts.posterior(shown),
                source,
            )
            for shown, _, source in asked
            for index in range(samples)
        ]
        rollouts = generator.generate(requests, sampling, Draw(seed, 0, "leak"))
        each = [one for one in asked for _ in range(samples)]
        found = [read(p, source, r.text, other) for (p, other, source), r in zip(each, rollouts, strict=True)]
        if answering is not None:
            foils = [shuffled[start + i // (samples * len(SOURCES))].shown for i in range(len(each))]
            pairs = [(p, foil) for (p, _, _), foil in zip(each, foils, strict=True)]
            said = answers_said(answering, pairs, rollouts, sampling.temperature, seed)
            found = [replace(r, said=one) for r, one in zip(found, said, strict=True)]
        reads += found
    return LeakReport(tuple(reads), samples)


def read(problem: Problem, source: str, text: str, other: str) -> Read:
    """What is found in one trace; ``other`` is a different problem's answer."""
    admits = _ADMITS.search(text)
    shown = None if source == "prior" else states_early(text, problem.shown)
    return Read(
        problem, source, text, states_early(text, problem.answer), shown, states_early(text, other),
        admits[0] if admits else None,
    )  # fmt: skip


def sentence(rates: dict[str, dict[str, Any]]) -> str:
    """The finding as text."""
    posterior, prior, shuffled = (rates[name] for name in ("posterior", "prior", "shuffled"))
    low, high = posterior["intervals"]["excess"]
    said = (
        f"Posterior traces state their answer early in {posterior['own_early']:.1%} (another problem's answer: "
        f"{posterior['other_early']:.1%}, prior traces: {prior['own_early']:.1%}) and admit knowing one in "
        f"{posterior['admits']:.1%} (prior: {prior['admits']:.1%}); with another problem's answer in the prompt, "
        f"{shuffled['shown_early']:.1%} state that one early. "
    )
    beyond_prior = posterior["own_early"] - prior["own_early"]
    if low > 0 and beyond_prior > 0.01:
        return said + f"They leak: {100 * low:.1f} to {100 * high:.1f} points above another problem's answer (95 %)."
    if posterior["admits"] > prior["admits"] + 0.01:
        return said + "They leak in words: they say that an answer was given."
    return said + "No leak is seen by these two signs."
