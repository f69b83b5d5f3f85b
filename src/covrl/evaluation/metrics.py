"""All figures of an exam from its records, and what one model can solve that another cannot."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from covrl.errors import UserError
from covrl.evaluation.benchmarks import Suite
from covrl.evaluation.exam import Sample, Solved
from covrl.evaluation.support import (
    Outcomes,
    Support,
    answer_entropy,
    deal_against_itself,
    deal_halves,
    maj_at_k,
    mean_support,
    null_quantiles,
    rate_intervals,
)
from covrl.records import SOUND
from covrl.statistics import Interval, bootstrap_intervals, pass_at_k, powers_of_two

MOST_COMPARED = 8
"""Right traces of one problem that are compared with each other; the cost is quadratic."""


def check_ks(ks: Sequence[int], n: int, where: str) -> list[int]:
    """The k to report: those asked for, or 1, 2, 4, … ≤ n.

    Raises:
        UserError: a k that n samples cannot give.
    """
    for k in ks:
        if not 1 <= k <= n:
            raise UserError(f"--k {k}: {where}: pass@{k} and maj@{k} need at least {k} samples a problem, and n is {n}")
    return sorted(set(ks)) if ks else powers_of_two(n) if n else []


def figures(solved: Sequence[Solved], ks: Sequence[int], chance: float | None = None) -> dict[str, Any]:
    """The figures of one model on one exam.

    ``avg@n``, ``pass@k`` (unbiased) and ``maj@k`` are over the sampled traces; ``intervals`` are 95 % over problems.
    ``answer_entropy`` (nats) is that of the answers of a problem's samples, ``token_entropy`` the mean of −log p over
    sampled tokens: an unbiased estimate of the entropy of a token (nats). ``diversity_right``: how different the right
    traces of a problem are (:func:`diversity`). ``unknown``, ``truncated``, ``no_closing_tag`` and ``answers_at_limit``
    (of tokens) are shares of all traces, the greedy ones included. An answer without a verdict counts as not right.
    """
    n = len(solved[0].samples)
    found = graded_figures(solved, columns_of(solved, ks))
    found |= {"n": n} | ({} if chance is None else {"chance": chance})
    if n:
        found["answer_entropy"] = fmean(answer_entropy([s.answer for s in row.samples]) for row in solved)
        tokens = sum(s.trace_tokens for row in solved for s in row.samples)
        found["token_entropy"] = sum(s.nats for row in solved for s in row.samples) / tokens if tokens else None
        found["diversity_right"] = diversity(solved)
    found |= _lengths(solved)
    found["pass_curve"] = [fmean(pass_at_k(n, sum(row.marks), k) for row in solved) for k in range(1, n + 1)]
    return found


def graded_figures(solved: Sequence[Solved], columns: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The figures that need nothing but verdicts and endings: means of ``columns`` with their intervals, and shares.

    ``columns`` are of :func:`columns_of`.
    """
    n = len(solved[0].samples)
    everything = [s for row in solved for s in (row.greedy, *row.samples)]
    found: dict[str, Any] = {"problems": len(solved)} | ({"n": n} if n else {})
    found |= {name: fmean(values) for name, values in columns.items()}
    found |= {name: fmean(map(test, everything)) for name, test in SHARES.items()}
    found["trace_tokens"] = fmean(s.trace_tokens for s in everything)
    if solved[0].greedy.label is not None:
        found["sound"] = fmean(row.greedy.label == SOUND for row in solved)
        if n:
            found["sound_sampled"] = fmean(s.label == SOUND for row in solved for s in row.samples)
    return found | {"intervals": {name: list(ends) for name, ends in bootstrap_intervals(columns).items()}}


SHARES: dict[str, Callable[[Sample], bool]] = {
    "unknown": lambda s: s.verdict == "unknown",
    "truncated": lambda s: s.finish == "length",
    "no_closing_tag": lambda s: s.finish != "closed",
    "answers_at_limit": lambda s: s.answer_cut,
}


MOST_UNKNOWN = 0.1
"""Share of unknown verdicts from which figures tell more about the verifier than about the model (INFERRED)."""


def unknown_note(where: str, figures: Mapping[str, Any]) -> list[str]:
    """A warning where many answers could not be graded, as they all count as not right."""
    share = figures["unknown"]
    if share <= MOST_UNKNOWN:
        return []
    return [
        f"{where}: {share:.0%} of the verdicts are unknown and count as not right; look at what was answered, and at "
        "the verifier"
    ]


def columns_of(solved: Sequence[Solved], ks: Sequence[int], majorities: bool = True) -> dict[str, list[float]]:
    """The figures whose mean over problems is reported, problem by problem; ``majorities``: with ``maj@k``.

    Majorities need the answers' normal forms, which records without an exam have not.
    """
    columns = {"greedy": [float(row.greedy.right) for row in solved]}
    n = len(solved[0].samples)
    if n:
        right = [sum(row.marks) for row in solved]
        columns["avg@n"] = [c / n for c in right]
        columns |= {f"pass@{k}": [pass_at_k(n, c, k) for c in right] for k in ks}
        answers = [[s.answer for s in row.samples] for row in solved]
        for k in ks if majorities else ():
            if k > 1:  # the majority of one sample is that sample
                found = (maj_at_k(a, row.marks, k) for a, row in zip(answers, solved, strict=True))
                columns[f"maj@{k}"] = list(found)
    return columns


def diversity(solved: Sequence[Solved]) -> float | None:
    """How different the right traces of a problem are: the mean of 1 − J over pairs, then over problems.

    J is the share of common word triples (Jaccard). Only problems with two right samples count; None without any.
    """
    found = []
    for row in solved:
        right = [_triples(s.trace) for s in row.samples if s.right][:MOST_COMPARED]
        if len(right) > 1:
            found.append(fmean(1 - len(a & b) / len(a | b) for a, b in combinations(right, 2)))
    return fmean(found) if found else None


def _triples(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+|[^\w\s]", text)
    return {tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}


def _lengths(solved: Sequence[Solved]) -> dict[str, float | None]:
    """Mean trace tokens of right and of wrong answers, and answer tokens where there is an answer."""
    everything = [s for row in solved for s in (row.greedy, *row.samples)]

    def mean(values: list[int]) -> float | None:
        return fmean(values) if values else None

    return {
        "trace_tokens_right": mean([s.trace_tokens for s in everything if s.right]),
        "trace_tokens_wrong": mean([s.trace_tokens for s in everything if s.verdict == "wrong"]),
        "answer_tokens": mean([s.answer_tokens for s in everything if s.answer_tokens]),
    }


def supports(base: Sequence[Solved], other: Sequence[Solved], seed: int = 0, draws: int = 200) -> dict[str, Any] | None:
    """Which problems ``base`` and ``other`` solve with their n samples; None without samples.

    ``at_n`` compares all n samples. ``null`` is the base against itself, half its samples each, and ``halves`` the two
    models at that same budget: ``halves`` against ``null`` shows the effect of training, as ``at_n`` has no null of its
    own. ``intervals`` are 95 % over problems, the null's ``quantiles`` hold 95 % of its draws: these problems, chance
    alone. ``detectable`` is the success rate of a problem that n samples find with probability 0.95.
    """
    n = len(base[0].samples)
    if not n:
        return None
    ours, theirs = [row.marks for row in base], [row.marks for row in other]
    whole = [[(any(a), any(b)) for a, b in zip(ours, theirs, strict=True)]]
    record: dict[str, Any] = {"n": n, "detectable": 1 - 0.05 ** (1 / n), "at_n": _with_intervals(whole, seed)}
    if n > 1:
        record["halves"] = _with_intervals(deal_halves(ours, theirs, seed, draws), seed)
        null = deal_against_itself(ours, seed, draws)
        record["null"] = rates(mean_support(null)) | {"quantiles": _listed(null_quantiles(null))}
    return record


def _with_intervals(deals: Sequence[Outcomes], seed: int) -> dict[str, Any]:
    return rates(mean_support(deals)) | {"intervals": _listed(rate_intervals(deals, seed))}


def _listed(ends: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in ends.items()}


def rates(found: Support) -> dict[str, Any]:
    """The counts and the four rates."""
    names = ("kept", "gained", "lost", "neither", "srr", "ndr", "sds", "nscr")
    return {name: getattr(found, name) for name in names}


def overall(suite: Suite, model: str, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The mean of a suite's benchmarks, one vote each: avg@n, or greedy accuracy where nothing was sampled.

    ``found[benchmark][model]`` are :func:`figures`.
    """
    values = {name: found[name][model].get("avg@n", found[name][model]["greedy"]) for name in suite.members}
    return {"suite": suite.name, "note": suite.note, "model": model, "value": fmean(values.values()), "members": values}
