"""Which metric goes into which chart, and what a healthy curve looks like.

No metric has to exist: a chart without data is left out, and a metric that no chart names gets a plain chart
under its family's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

MOST_LINES = 6  # more lines than this in one frame cannot be told apart


@dataclass(frozen=True, slots=True)
class ChartSpec:
    """One chart: its place, its words, and the metrics it draws (``*`` stands for any ending).

    ``unit`` is as in :class:`covrl.reporting.summary.ResultRow`. ``shade`` fills the space between the first two
    lines; ``chance`` draws the chance level; ``zero`` makes the axis start at zero.
    """

    section: str
    title: str
    unit: str
    healthy: str
    metrics: tuple[str, ...]
    kind: Literal["lines", "bars"] = "lines"
    log: bool = False
    shade: bool = False
    chance: bool = False
    zero: bool = False


LEARNING, TRACES, UPDATES, TIME, OTHER = "Learning", "The traces", "The updates", "Time", "Other metrics"

SECTIONS = {
    LEARNING: "Whether the model gets better, and whether it does so without being shown the answer.",
    TRACES: "What the sampled reasoning looks like from outside: how long, how varied, how often broken.",
    UPDATES: "What each optimiser step did, and how far importance weights had to be held back.",
    TIME: "Where the seconds of a step go.",
    OTHER: "Metrics that this report has no fixed place for, by family.",
}

CHARTS = (
    ChartSpec(
        LEARNING, "Held-out accuracy", "share",
        "Climbs above the chance line and stays there. A curve that settles on chance has learned the form of an "
        "answer, not the task.",
        ("eval/accuracy*", "eval/sampled", "eval/sound"), chance=True, zero=True,
    ),
    ChartSpec(
        LEARNING, "Reward watch: gain of accuracy", "share",
        "Verified accuracy now less that of an earlier evaluation, and the most that the gain can be at 99 %. In a run "
        "that learns it is well above 0 until everything is right.",
        ("watch/accuracy_gain", "watch/accuracy_gain_at_most"),
    ),
    ChartSpec(
        LEARNING, "Reward watch: rise of the reward", "",
        "Between the same evaluations, in deviations within a group. Parted is 1 where the reward rises and accuracy "
        "does not follow.",
        ("watch/reward_rise", "watch/parted", "watch/*"), zero=True,
    ),
    ChartSpec(
        LEARNING, "Held-out likelihood", "nats",
        "Mean log p(answer | question, trace) behind sampled prior traces of held-out problems, a trace without an end "
        "at the floor; and behind those with an end alone. Rises towards 0.",
        ("eval/log_prob", "eval/log_prob_closed"),
    ),
    ChartSpec(
        LEARNING, "What the answer takes from its trace", "nats",
        "Of the answer's first token: information is how much depends on which trace stands before it, entropy what is "
        "open after a trace. In a healthy run both end near 0, as all traces come to agree. Information that falls "
        "while entropy rises is an answer that hedges and no longer reads its trace.",
        ("answer/information", "answer/entropy"), zero=True,
    ),
    ChartSpec(
        LEARNING, "The same on held-out problems", "nats",
        "After sampled prior traces of a few held-out problems.",
        ("eval/answer_information", "eval/answer_entropy"), zero=True,
    ),
    ChartSpec(
        LEARNING, "What a trace is worth to the answer", "nats",
        "log p(answer) after a trace less that after an empty thought (gain), and less that after another problem's "
        "trace (read). Below 0 where a base's traces mislead; rises well above 0 where thinking helps.",
        ("thought/gain", "thought/read"),
    ),
    ChartSpec(
        LEARNING, "What a trace is worth on held-out problems", "nats",
        "The same two of sampled prior traces of a few held-out problems.",
        ("eval/thought_gain", "eval/thought_read"),
    ),
    ChartSpec(
        LEARNING, "Reward by source", "",
        "In a likelihood method nats of log p(answer | question, trace), where 0 is certainty, and the shaded gap "
        "narrows; with a verifier the share of right responses. Rises.",
        ("reward/prior", "reward/posterior"), shade=True,
    ),
    ChartSpec(
        LEARNING, "KL per trace", "nats",
        "Levels off. A steady climb says that the traces seen in training drift away from what the question "
        "alone would bring forth.",
        ("kl/nats_per_trace",), zero=True,
    ),
    ChartSpec(
        LEARNING, "Reward gap", "nats",
        "Posterior minus prior: what seeing the answer is worth. Shrinks towards 0 from above.",
        ("reward/gap",), zero=True,
    ),
    ChartSpec(
        LEARNING, "Verdicts", "share",
        "Of the training responses: right rises, unknown stays near 0. Groups in which all or none are right teach a "
        "group method nothing.",
        ("verdict/right_share", "verdict/*"), zero=True,
    ),
    ChartSpec(
        TRACES, "Trace length", "tokens",
        "The sources move together. A fall to almost nothing means that reasoning is being skipped; a rise to the "
        "limit ends in truncation.",
        ("length/prior", "length/posterior", "length/*"), zero=True,
    ),
    ChartSpec(
        TRACES, "Entropy", "nats",
        "Per token. Falls slowly and stays above 0; at 0 all traces of a group are alike and none can be preferred.",
        ("entropy/prior", "entropy/posterior", "entropy/*"), zero=True,
    ),
    ChartSpec(
        TRACES, "Broken traces", "share",
        "All near 0: cut off at the limit, without a closing tag, or with a reward that hit the floor.",
        ("trace/truncated_share", "trace/invalid_share", "reward/floored_share", "trace/invalid_*"), zero=True,
    ),
    ChartSpec(
        TRACES, "Held-out traces with an end", "share",
        "Sampled prior traces of held-out problems that were closed, so that an answer can follow. Near 100 %.",
        ("eval/closed_share",), zero=True,
    ),
    ChartSpec(
        TRACES, "What prior traces do", "share",
        "Where the task can tell. Sound traces take over, false steps stay rare; these marks are never trained on.",
        ("label/prior_*",), zero=True,
    ),
    ChartSpec(
        TRACES, "What posterior traces do", "share",
        "The same with the answer in sight: how well the hint selects the reasoning that leads to it.",
        ("label/posterior_*",), zero=True,
    ),
    ChartSpec(
        TRACES, "Answer leak", "share",
        "How often a posterior trace names the shown answer, against an answer from another problem. The excess "
        "stays near 0.",
        ("leak/posterior_rate", "leak/shuffled_rate", "leak/*"), zero=True,
    ),
    ChartSpec(
        UPDATES, "Importance ratios", "",
        "Log scale. The mean keeps close to 1; a maximum that grows without end says that the sources have parted.",
        ("ratio/source_mean", "ratio/source_max"), log=True,
    ),
    ChartSpec(
        UPDATES, "Ratios held back", "share",
        "Share of weights that were capped or clipped. Small: where it is large, the update is mostly the cap's.",
        ("ratio/*_share", "sampler/truncated_share"), zero=True,
    ),
    ChartSpec(
        UPDATES, "Sampler against trainer", "nats",
        "How far the sampler's log-probs are from the trainer's, a token. Flat: rounding. A climb says that the engine "
        "has other weights or another dtype than are trained.",
        ("sampler/gap_mean", "sampler/kl"), log=True,
    ),
    ChartSpec(
        UPDATES, "Gradient norm by stream", "",
        "Log scale. The streams keep their order; a spike in one of them shows which loss upset the step.",
        ("grad_norm/total", "grad_norm/policy", "grad_norm/*"), log=True,
    ),
    ChartSpec(
        UPDATES, "Loss by stream", "",
        "Not a measure of success: the policy loss hovers about 0 whatever happens. Look for jumps.",
        ("loss/policy", "loss/*"),
    ),
    ChartSpec(
        UPDATES, "KL per token", "nats",
        "The KL without the effect of length: rises only if the wording itself moves.",
        ("kl/nats_per_token",), zero=True,
    ),
    ChartSpec(
        UPDATES, "Groups", "",
        "Groups that were sampled, and those that the method admitted. At 0 kept there was nothing to learn from.",
        ("groups/kept", "groups/sampled"), zero=True,
    ),
    ChartSpec(
        UPDATES, "Groups without signal", "share",
        "Admitted groups in which no response has any weight, as all rewards are equal.",
        ("groups/without_signal_share",), zero=True,
    ),
    ChartSpec(UPDATES, "Learning rate", "", "As the schedule says.", ("optim/lr",), zero=True),
    ChartSpec(
        TIME, "Tokens per step", "tokens",
        "Sampled; read once for scores; read forward and backward. What the seconds buy.",
        ("tokens/generated", "tokens/scored", "tokens/trained"), zero=True,
    ),
    ChartSpec(
        TIME, "Time per step", "seconds",
        "Flat, and most of it spent on sampling. Growth without longer traces is a leak.",
        ("time/generate", "time/score", "time/train", "time/eval", "time/*"), kind="bars", zero=True,
    ),
)  # fmt: skip


def plan(names: Iterable[str]) -> list[ChartSpec]:
    """The charts for these metrics, in page order; each metric is drawn exactly once."""
    left = sorted(set(names))
    charts = []
    for spec in CHARTS:
        taken = _matches(spec.metrics, left)
        if taken:
            charts.append(replace(spec, metrics=tuple(taken)))
            left = [name for name in left if name not in taken]
    return charts + _plain_charts(left)


def label(metric: str) -> str:
    """The name of a line inside its family's chart: ``trace/truncated_share`` is ``truncated``."""
    short = metric.partition("/")[2] or metric
    return short.removesuffix("_share").removesuffix("_rate").replace("_", " ")


def unit_of(metric: str) -> str:
    """The unit that a metric's name gives away."""
    if metric.endswith(("_share", "_rate", "/accuracy", "eval/sampled", "eval/sound", "_gain", "_at_most")):
        return "share"
    family, _, name = metric.partition("/")
    if family == "reward" and name not in ("prior", "posterior", "gap", "group_std"):  # a user's function: its own unit
        return ""
    return {"time": "seconds", "length": "tokens", "entropy": "nats", "reward": "nats", "kl": "nats"}.get(family, "")


def _matches(patterns: tuple[str, ...], names: list[str]) -> list[str]:
    found = [name for pattern in patterns for name in names if fnmatchcase(name, pattern)]
    return list(dict.fromkeys(found))


def _plain_charts(names: list[str]) -> list[ChartSpec]:
    """One chart for each family and unit, cut where it would hold too many lines."""
    families: dict[tuple[str, str], list[str]] = {}
    for name in names:
        families.setdefault((name.partition("/")[0], unit_of(name)), []).append(name)
    charts = []
    for (family, unit), members in families.items():
        for start in range(0, len(members), MOST_LINES):
            lines = tuple(members[start : start + MOST_LINES])
            charts.append(ChartSpec(OTHER, family.replace("_", " "), unit, "", lines))
    return charts
