"""Warnings from what the traces of a likelihood run look like, from the metrics of its steps.

Means of the last three looks at a metric are compared with means of the first three; greedy held-out accuracy is that
of the last evaluation and of the first. A look is a step that has the metric, and a check is made on the steps that
have the first of its metrics. They are those of :mod:`covrl.evaluation.trace_monitors` and
:mod:`covrl.evaluation.hints`, where the papers are named.

All thresholds are ours (INFERRED): they decide when a sentence is written, and never end a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

WINDOW = 3
"""Looks in a mean."""

ACCURACY = "eval/accuracy"
"""Greedy; of one evaluation, as these are few and of many problems."""

PAGE = "docs/reading-a-report.md#with-the-answer-in-sight"
"""Where each of these warnings is explained."""

HALVED = 0.5
"""Median length and hedging rate, as shares of their starts, at which they count as fallen."""

GONE = 0.1
"""Median length, as a share of its start, at which thoughts have collapsed, whatever earns the reward."""

SHORTER_EARNS = -0.1
"""Correlation of length and reward within questions below which shorter traces earn more."""

LEAST_HEDGES = 0.2
"""Hedges per 100 tokens at the start below which there is nothing to lose."""

LEAST_GAIN = 0.02
"""Gain of greedy held-out accuracy from which less hedging is no harm."""

CONCENTRATED = 0.5
"""Share of the KL on 1 % of the tokens above which few tokens make it up."""

LEAST_KL = 1.0
"""KL per trace (nats) below which it does not matter where it lies."""

SUMMARY = 0.4
"""Posterior length over prior length below which posterior traces are summaries."""

LOOSE_NATS2 = 25.0
"""Variance of log w within questions above which the prompted posterior is far from the posterior."""

ONE_TRACE = 1.5
"""Effective number of posterior traces a question below which one of them has all the weight."""

LIFT = 3.0
"""How many times as much of the KL words of style have as their share of tokens, above which it is about style."""

LEAST_HELPING = 0.4
"""Share of traces that help the answer below which thoughts do not help."""

NO_GAP = 0.02
"""What several traces' bound has over one's (nats) below which it does not matter which thought it is."""

BLIND = 0.8
"""Share of what a hint changes that another hint changes too, above which only the style is left."""

Means = Mapping[str, float]


class Check(NamedTuple):
    """A named trouble: the metrics that it needs, those that it also looks at, and the sentence, or None."""

    needs: tuple[str, ...]
    also: tuple[str, ...]
    say: Callable[[Means, Means], str | None]


class TraceWatch:
    """Sees each step's metrics; its few numbers of state go into checkpoints."""

    def __init__(self) -> None:
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, list[float]] = {}

    def step(self, metrics: Mapping[str, float]) -> list[str]:
        """Take one step and return the warnings that are due."""
        fresh = {name: metrics[name] for name in WATCHED if math.isfinite(metrics.get(name, math.nan))}
        for name, value in fresh.items():
            first, last = self.first.setdefault(name, []), self.last.setdefault(name, [])
            if len(first) < _window(name):
                first.append(value)
            last[:] = [*last, value][-_window(name) :]
        known = {name for name, values in self.last.items() if len(values) == _window(name)}
        start, now = ({n: fmean(side[n]) for n in known} for side in (self.first, self.last))
        due = [check for check in CHECKS if known.issuperset(check.needs) and fresh.keys() >= set(check.needs[:1])]
        said = (check.say(start, now) for check in due)
        return [f"{text} ({PAGE})" for text in said if text is not None]

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; of a checkpoint from before the watch, nothing."""
        self.first, self.last = ({n: list(v) for n, v in state.get(key, {}).items()} for key in ("first", "last"))


def _window(name: str) -> int:
    return 1 if name == ACCURACY else WINDOW


def _collapse(start: Means, now: Means) -> str | None:
    before, after = start["length/median_prior"], now["length/median_prior"]
    shorter, gain = now.get("length/within_corr", 0.0), now.get("thought/gain", math.nan)
    fell = gain < start.get("thought/gain", math.nan)
    if after > HALVED * before or not (after <= GONE * before or shorter < SHORTER_EARNS or fell):
        return None
    because = (
        f"within questions shorter traces earn more (correlation {shorter:.2f})"
        if shorter < SHORTER_EARNS
        else f"what a trace adds to the answer fell from {start['thought/gain']:.2f} to {gain:.2f} nats"
        if fell
        else "hardly a token of reasoning is left"
    )
    return (
        f"length collapse: the median prior trace went from {before:.0f} to {after:.0f} tokens, and {because}; lower "
        "the learning rate, take shorter reference answers or problems that need the thought, or a verifier"
    )


def _long_earn_less(start: Means, now: Means) -> str | None:
    del now
    if start["length/within_corr"] >= SHORTER_EARNS or start["length/within_corr_upper"] >= 0:
        return None
    return (
        f"long traces earn less: before training the correlation of length and reward within questions is "
        f"{start['length/within_corr']:.2f}, so thoughts will become shorter; take shorter reference answers, a reward "
        "per token (algorithm.reward = 'mean') or a verifier"
    )


def _no_doubt(start: Means, now: Means) -> str | None:
    before, after = start["style/hedges_prior"], now["style/hedges_prior"]
    gain = now[ACCURACY] - start[ACCURACY]
    if before < LEAST_HEDGES or after >= HALVED * before or gain >= LEAST_GAIN:
        return None
    return (
        f"doubt is vanishing: words such as 'wait' and 'maybe' went from {before:.2f} to {after:.2f} per 100 tokens, "
        f"while greedy held-out accuracy went from {start[ACCURACY]:.1%} to {now[ACCURACY]:.1%}; the "
        "certainty of traces that see the answer is copied; choose a wording of the posterior prompt that leaves "
        "doubt (prompts.posterior_template = 'check')"
    )


def _few_tokens(start: Means, now: Means) -> str | None:
    del start
    if now["style/kl_top1_share"] <= CONCENTRATED or now["kl/nats_per_trace"] < LEAST_KL:
        return None
    return (
        f"the KL is on few tokens: 1 % of them have {now['style/kl_top1_share']:.0%} of its "
        f"{now['kl/nats_per_trace']:.1f} nats a trace; look in the trace browser whether they are words of style, "
        "and if so choose another wording of the posterior prompt (prompts.posterior_template)"
    )


def _summary(start: Means, now: Means) -> str | None:
    del start
    if now["style/length_ratio"] >= SUMMARY:
        return None
    return (
        f"summarising posterior: the median posterior trace has {now['style/length_ratio']:.0%} of the prior's tokens; "
        "it states the result more than it derives it; choose another wording of the posterior prompt "
        "(prompts.posterior_template) or a shorter hint"
    )


def _loose(start: Means, now: Means) -> str | None:
    del start
    if now["posterior/log_w_var"] <= LOOSE_NATS2 or now["posterior/ess"] >= ONE_TRACE:
        return None
    return (
        f"loose bound: log p(z) + log p(y|z) − log q(z) varies by {now['posterior/log_w_var']:.0f} nats² within "
        f"questions (effective sample size {now['posterior/ess']:.1f} traces): what the posterior prompt writes is far "
        "from the model's own posterior; choose another wording, or a method without posterior traces"
    )


def _blind(start: Means, now: Means) -> str | None:
    del start
    if now["hint/blind_share"] <= BLIND:
        return None
    return (
        f"the hint changes the style only: {now['hint/blind_share']:.0%} of what it does to the tokens a wrong hint "
        "does too; compare with a run with problems.shuffle_hints, and choose another wording of the posterior prompt "
        "(prompts.posterior_template)"
    )


def _any_answer(start: Means, now: Means) -> str | None:
    del start
    if now["eval/hint_margin_upper"] > 0:
        return None
    return (
        f"traces defend any answer: on held-out problems the bound under a wrong hint is as high as under the right "
        f"one (margin {now['eval/hint_margin']:.1f} nats, at most {now['eval/hint_margin_upper']:.1f}); the base "
        "cannot use the hint: take a stronger base, easier problems, or a method without posterior traces"
    )


def _about_style(start: Means, now: Means) -> str | None:
    del start
    if now["style/kl_words_lift"] <= LIFT or now["kl/nats_per_trace"] < LEAST_KL:
        return None
    return (
        f"the KL is about style: words of doubt and connectives have {now['style/kl_words_lift']:.1f} times the KL of "
        "other tokens; what the posterior teaches is how it talks; choose another wording of the posterior prompt "
        "(prompts.posterior_template), or weigh tokens by a wrong hint (algorithm.contrast)"
    )


def _no_help(start: Means, now: Means) -> str | None:
    share, gain = now["thought/helps_share"], now["thought/gain"]
    if share >= LEAST_HELPING or gain >= min(start["thought/gain"], 0.0):
        return None
    return (
        f"thoughts do not help: the answer is likelier after {share:.0%} of the traces than after an empty thought, "
        f"and what a trace adds went from {start['thought/gain']:.2f} to {gain:.2f} nats; what rises is the answer "
        "alone: compare with covrl preflight, take shorter reference answers, or a verifier"
    )


def _no_matter(start: Means, now: Means) -> str | None:
    if now["bound/mc_gap"] >= NO_GAP or now["thought/gain"] > 0 or start["bound/mc_gap"] < NO_GAP:
        return None
    return (
        f"no thought matters: the answer is as likely after any trace (the bound of a group's traces is "
        f"{now['bound/mc_gap']:.3f} nats above that of one, at the start {start['bound/mc_gap']:.3f}), and no likelier "
        "than after none; lower the learning rate, or train the answer after traces that help alone "
        "(algorithm.nll = 'read')"
    )


CHECKS = (
    Check(("length/median_prior",), ("length/within_corr", "thought/gain"), _collapse),
    Check(("length/within_corr", "length/within_corr_upper"), (), _long_earn_less),
    Check(("style/hedges_prior", ACCURACY), (), _no_doubt),
    Check(("style/kl_top1_share", "kl/nats_per_trace"), (), _few_tokens),
    Check(("style/kl_words_lift", "kl/nats_per_trace"), (), _about_style),
    Check(("thought/helps_share", "thought/gain"), (), _no_help),
    Check(("thought/gain", "bound/mc_gap"), (), _no_matter),
    Check(("style/length_ratio",), (), _summary),
    Check(("posterior/log_w_var", "posterior/ess"), (), _loose),
    Check(("hint/blind_share",), (), _blind),
    Check(("eval/hint_margin", "eval/hint_margin_upper"), (), _any_answer),
)

WATCHED: Sequence[str] = tuple(dict.fromkeys(name for check in CHECKS for name in (*check.needs, *check.also)))
