"""What the traces of a likelihood run look like: lengths, hedging, and where the KL lies. No further forward.

    within_corr   correlation of length and reward, both centred within question and source, pooled over a step
    hedges        hits of a list of words per 100 trace tokens
    length_ratio  median length of posterior traces / median length of prior traces
    kl_top1       share of Σ_t KL_t on the 1 % of trace tokens with the most
    kl_lift       share of Σ_t KL_t on hedging words and connectives / their share of tokens
    mc_gap        log mean_i π(y|x,z_i) − mean_i log π(y|x,z_i) over a question's prior traces: 0 if all serve alike

Each belongs to a published way in which training with the answer in sight goes wrong (``answer_in_sight.md`` sections
2.1 and 2.3): on long answers shorter thoughts earn more log-prob, and thoughts vanish (arXiv 2602.03979); traces that
were written with the answer in sight have little doubt in them, and the model unlearns to doubt (2603.24472); most of
the gap between both prompts is the hinted style and not the reasoning (2601.18734, 2606.11709).

Labels: 2602.03979's finding and the list of words (2603.24472's code) are CONFIRMED, the other findings come from
secondary sources. The definitions by source, what is counted, and all thresholds are INFERRED, ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import NormalDist, fmean, median
from typing import NamedTuple

import torch
from torch import Tensor

from covrl.precision import wide
from covrl.records import Credit, Output, Rollout, ScoredGroup
from covrl.rewards.likelihood import answer_reward

ANSWER, KL = Output("answer", "prior"), Output("trace", "kl")

Pair = tuple[float, float]
"""Length (tokens) and reward of one trace."""

FEWEST_VARIED = 8
"""Traces in groups in which lengths differ, below which a step has no correlation: one odd trace would make it."""


SHORT_TOKENS = 16
"""Trace length below which there is hardly any thought."""

LIFT_GROUPS, LIFT_TOKENS = 8, 256
"""Groups, and first tokens of a trace, in which words are looked for: each token is decoded in its place."""

FORK_NATS, FORK_SECOND = 1.0, 0.2
"""Entropy, and probability of the second choice, above which a token is a fork."""

CONNECTIVES = ("so", "then", "thus", "therefore", "hence", "because", "since", "but", "however", "first", "next", "now")
"""Words that join steps and are no content of them (INFERRED, ours)."""


class Correlation(NamedTuple):
    """``within`` groups, its upper 95 % limit (one-sided 97.5 %), and ``overall`` without regard to groups."""

    within: float
    at_most: float
    overall: float


def trace_metrics(
    groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]], hedging_words: Sequence[str]
) -> dict[str, float]:
    """All monitors of this file that the step's groups have something for; a missing one is left out."""
    found = length_metrics(groups, credits) | hedging_metrics(groups, hedging_words) | kl_metrics(groups)
    return found | bound_metrics(groups)


def length_metrics(groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
    """Lengths of closed traces, and how they go with the reward.

    ``length/median_prior``, ``length/median_posterior`` (tokens) and ``style/length_ratio``, the second over the first;
    ``length/short_share`` of prior traces below :data:`SHORT_TOKENS`.
    ``length/within_corr`` and its upper 95 % limit ``length/within_corr_upper``: :func:`length_correlation` within
    question and source, as the difference between the sources is what seeing the answer does. ``length/overall_corr``
    beside it may have the other sign. Traces that did not close are left out: their reward is a penalty. There are no
    correlations with fewer than :data:`FEWEST_VARIED` traces.
    """
    lengths: dict[str, list[int]] = {}
    pairs: dict[tuple[str, str], list[Pair]] = {}
    for group, row in zip(groups, credits, strict=True):
        for rollout, credit in zip(group.rollouts, row, strict=True):
            if rollout.request.scored and rollout.valid:
                lengths.setdefault(rollout.source, []).append(len(rollout.trace_ids))
                if credit.reward is not None:
                    pair = len(rollout.trace_ids), credit.reward
                    pairs.setdefault((group.problem.id, rollout.source), []).append(pair)
    metrics = {f"length/median_{source}": float(median(found)) for source, found in lengths.items()}
    if lengths.get("prior"):
        metrics["length/short_share"] = fmean(length < SHORT_TOKENS for length in lengths["prior"])
    if metrics.get("length/median_prior") and "posterior" in lengths:
        metrics["style/length_ratio"] = metrics["length/median_posterior"] / metrics["length/median_prior"]
    varied = sum(len(row) for row in pairs.values() if len({length for length, _ in row}) > 1)
    found = length_correlation(list(pairs.values())) if varied >= FEWEST_VARIED else None
    if found is not None:
        metrics |= {"length/within_corr": found.within, "length/within_corr_upper": found.at_most}
        metrics["length/overall_corr"] = found.overall
    return metrics


def length_correlation(groups: Sequence[Sequence[Pair]]) -> Correlation | None:
    """Pearson's correlation of pairs that were centred within their groups, pooled: one number from −1 to 1.

    The limit is Fisher's: tanh(atanh r + z / √(n − G − 2)), for n pairs in G groups, which is that of a partial
    correlation given the group. None where either number varies in no group, or too few pairs are left for the limit.

    Example:
        >>> length_correlation([[(10, -3.0), (20, -3.2), (30, -3.4)], [(110, -1.0), (120, -1.2), (130, -1.4)]])
        Correlation(within=-1.0..., at_most=-1.0..., overall=0.948...)
    """
    rows = [group for group in groups if len(group) > 1]
    degrees = sum(map(len, rows)) - len(rows) - 2
    centred = [pair for row in rows for pair in _centred(row)]
    within = _correlation(centred) if degrees > 0 else None
    overall = _correlation(_centred([pair for row in rows for pair in row])) if rows else None
    if within is None or overall is None:
        return None
    z = NormalDist().inv_cdf(0.975) / math.sqrt(degrees)
    inside = min(max(within, -1 + 1e-12), 1 - 1e-12)
    return Correlation(within, math.tanh(math.atanh(inside) + z), overall)


def _centred(pairs: Sequence[Pair]) -> list[Pair]:
    first, second = fmean(a for a, _ in pairs), fmean(b for _, b in pairs)
    return [(a - first, b - second) for a, b in pairs]


def _correlation(centred: Sequence[Pair]) -> float | None:
    spread = math.sqrt(math.fsum(a * a for a, _ in centred) * math.fsum(b * b for _, b in centred))
    return math.fsum(a * b for a, b in centred) / spread if spread > 0 else None


def hedging_metrics(groups: Sequence[ScoredGroup], words: Sequence[str]) -> dict[str, float]:
    """``style/hedges_prior`` and ``style/hedges_posterior``: words of the list per 100 trace tokens, by source.

    Over all scored traces, those that were cut included; whole words, in any case. Without ``words`` there is none.
    """
    if not words:
        return {}
    hits: dict[str, int] = {}
    tokens: dict[str, int] = {}
    listed = hedging_pattern(words)
    for rollout in _scored(groups):
        hits[rollout.source] = hits.get(rollout.source, 0) + len(listed.findall(rollout.text))
        tokens[rollout.source] = tokens.get(rollout.source, 0) + len(rollout.trace_ids)
    return {f"style/hedges_{source}": 100 * hits[source] / count for source, count in tokens.items() if count}


def hedging_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Finds each of the words where it stands alone: *might* in "it might", not in "almighty"."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)


def kl_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """``style/kl_top1_share`` and ``style/kl_gini`` of the KL per token between both prompts, where a method reads one.

    Traces that were cut are left out, as in CoVRL's loss.
    """
    parts = [
        s.values[KL].detach()
        for group in groups
        for r, s in zip(group.rollouts, group.scores, strict=True)
        if KL in s.values and r.finish != "length"
    ]
    kl = wide(torch.cat(parts)).clamp(min=0) if parts else torch.zeros(0)
    if not float(kl.sum()) > 0:
        return {}
    return {"style/kl_top1_share": top_share(kl, 0.01), "style/kl_gini": gini(kl)}


def top_share(values: Tensor, part: float) -> float:
    """Share of the sum of ``values`` ``[N]``, none below 0, on the largest ``part`` of them, at least on one.

    Example:
        >>> top_share(torch.tensor([4.0, 1.0, 0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]), 0.1)
        0.666...
    """
    most = max(math.ceil(part * len(values) - 1e-9), 1)
    return float(values.topk(most).values.sum() / values.sum())


def gini(values: Tensor) -> float:
    """Gini's coefficient of ``values`` ``[N]``, none below 0: 0 if all are equal, near 1 if one has everything.

    Example:
        >>> gini(torch.tensor([4.0, 1.0, 0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]))
        0.775...
    """
    count = len(values)
    rank = torch.arange(1, count + 1, dtype=values.dtype, device=values.device)
    return float(2 * (rank * values.sort().values).sum() / (count * values.sum())) - (count + 1) / count


def words_lift(
    groups: Sequence[ScoredGroup], words: Sequence[str], decode: Callable[[Sequence[int]], str]
) -> dict[str, float]:
    """``style/kl_words_lift``: the KL's share on tokens of listed words and connectives, over their share of tokens.

    Of the beginnings of the first groups' traces, cut ones left out; none where there is no such word or no KL.
    ``decode`` makes text of ids, in which a token's own is what it adds.
    """
    listed = hedging_pattern([*words, *CONNECTIVES])
    inside, kl = [], []
    for group in groups[:LIFT_GROUPS]:
        for rollout, scores in zip(group.rollouts, group.scores, strict=True):
            if KL in scores.values and rollout.finish != "length":
                ids = rollout.trace_ids[:LIFT_TOKENS]
                inside += _in_words(ids, listed, decode)
                kl.append(wide(scores[KL].detach()[: len(ids)]).clamp(min=0))
    whole = torch.cat(kl) if kl else torch.zeros(0)
    if not any(inside) or not float(whole.sum()) > 0:
        return {}
    share = float(whole[torch.tensor(inside, device=whole.device)].sum() / whole.sum())
    return {"style/kl_words_lift": share / fmean(inside)}


def _in_words(ids: Sequence[int], listed: re.Pattern[str], decode: Callable[[Sequence[int]], str]) -> list[bool]:
    """Whether each token has a character of a word that ``listed`` finds in the text of all."""
    edges = [len(decode(ids[:upto])) for upto in range(len(ids) + 1)]
    found = [match.span() for match in listed.finditer(decode(ids))]
    return [any(a < end and start < b for a, b in found) for start, end in pairwise(edges)]


def bound_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """``bound/mc_gap`` in nats, a mean over the questions with at least two closed prior traces; log π is floored."""
    each = []
    for group in groups:
        rows = zip(group.rollouts, group.scores, strict=True)
        found = [answer_reward(s.values[ANSWER], "sum") for r, s in rows if r.source == "prior" and ANSWER in s.values]
        if len(found) > 1:
            each.append(mc_gap(found))
    return {"bound/mc_gap": fmean(each)} if each else {}


def fork_share(rollouts: Sequence[Rollout]) -> float | None:
    """Share of tokens drawn at a fork: entropy above 1 nat and a second choice above 0.2 (arXiv 2607.05184's sign).

    Of rollouts whose entropy and two likeliest tokens were observed; None where there are none.
    """
    found = [
        entropy > FORK_NATS and len(top) > 1 and math.exp(top[1]) > FORK_SECOND
        for r in rollouts
        if r.observed.entropy is not None and r.observed.top_log_probs is not None
        for entropy, top in zip(r.observed.entropy, r.observed.top_log_probs, strict=True)
    ]
    return fmean(found) if found else None


def mc_gap(log_probs: Sequence[float]) -> float:
    """log mean exp ℓ − mean ℓ, nats: what the bound of several traces has over that of one.

    Example:
        >>> mc_gap([0.0, 0.0])
        0.0
    """
    top = max(log_probs)
    return top + math.log(fmean(math.exp(value - top) for value in log_probs)) - fmean(log_probs)


def _scored(groups: Sequence[ScoredGroup]) -> Iterable[Rollout]:
    return (rollout for group in groups for rollout in group.rollouts if rollout.request.scored)
