"""Which metric goes into which chart, and what a healthy curve looks like.

No metric has to exist: a chart without data is left out, and a metric that no chart names gets a plain chart
under its family's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

MOST_LINES = 6  # more lines than this in one frame cannot be distinguished


@dataclass(frozen=True, slots=True)
class ChartSpec:
    """One chart: its section, its texts, and the metrics it draws (``*`` stands for any ending).

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
    TRACES: "The sampled traces: how long, how varied, how often broken.",
    UPDATES: "What each optimiser step did, and how often importance weights were capped or clipped.",
    TIME: "How the time of a step is spent.",
    OTHER: "Metrics without a chart of their own, by family.",
}

CHARTS = (
    ChartSpec(
        LEARNING, "Held-out accuracy", "share",
        "Climbs above the chance line and stays there. A curve that settles on chance has learned the form of an "
        "answer, not the task.",
        ("eval/accuracy*", "eval/sampled", "eval/answer_greedy", "eval/majority", "eval/sound"), chance=True, zero=True,
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
        "Mean log p(answer | question, trace) after sampled prior traces of held-out problems, with the floor for "
        "a trace without an end; and only after those with an end. Rises towards 0.",
        ("eval/log_prob", "eval/log_prob_closed"),
    ),
    ChartSpec(
        LEARNING, "What the answer takes from its trace", "nats",
        "For the answer's first token: information is its dependence on the trace before it, entropy how uncertain "
        "it is after a trace. In a healthy run both end near 0, because all traces come to agree. If information falls "
        "while entropy rises, the answer hedges and no longer depends on its trace.",
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
        "trace (read). Below 0 if the base's traces mislead; rises well above 0 if thinking helps.",
        ("thought/gain", "thought/read"),
    ),
    ChartSpec(
        LEARNING, "What a trace is worth on held-out problems", "nats",
        "The same two of sampled prior traces of a few held-out problems.",
        ("eval/thought_gain", "eval/thought_read"),
    ),
    ChartSpec(
        LEARNING, "Traces that help the answer", "share",
        "After which the answer is likelier than after an empty thought. Rises; below a half most thoughts mislead.",
        ("thought/helps_share", "eval/thought_helps_share"), zero=True,
    ),
    ChartSpec(
        LEARNING, "The answer without a thought", "nats",
        "log p(answer) after an empty thought. Where this rises and the gain falls, the answer is learnt and not the "
        "thought.",
        ("thought/empty_log_prob", "eval/thought_empty_log_prob"),
    ),
    ChartSpec(
        LEARNING, "How much it matters which thought it is", "nats",
        "The bound of a question's prior traces together less that of one. 0 if all serve the answer alike.",
        ("bound/mc_gap",), zero=True,
    ),
    ChartSpec(
        LEARNING, "Reward by source", "",
        "In a likelihood method log p(answer | question, trace) in nats, where 0 is certainty; the shaded gap narrows. "
        "With a verifier the share of right responses. Rises.",
        ("reward/prior", "reward/posterior"), shade=True,
    ),
    ChartSpec(
        LEARNING, "Reward by source of data", "",
        "Mean reward of prior traces of each source, with several. All rise; one that falls pays for the others.",
        ("data/*/reward",),
    ),
    ChartSpec(
        LEARNING, "Right and broken traces by source of data", "share",
        "Of the sampled traces of each source: right, where a verifier graded them, and without a closing tag.",
        ("data/*/right_share", "data/*/invalid_share"), zero=True,
    ),
    ChartSpec(
        LEARNING, "KL per trace", "nats",
        "Levels off. A steady rise means that training drifts to traces that the question alone does not lead to.",
        ("kl/nats_per_trace",), zero=True,
    ),
    ChartSpec(
        LEARNING, "Reward gap", "nats",
        "Posterior minus prior: what seeing the answer is worth. Shrinks towards 0 from above.",
        ("reward/gap",), zero=True,
    ),
    ChartSpec(
        LEARNING, "Verdicts", "share",
        "Of the training responses: right rises, unknown stays near 0. Groups in which all or none are right have "
        "no signal for most methods with a verifier.",
        ("verdict/right_share", "verdict/*"), zero=True,
    ),
    ChartSpec(
        TRACES, "Length and reward", "",
        "Their correlation over closed traces, within questions and over all of them. Clearly below 0 within "
        "questions, shorter traces earn more, and thoughts become shorter.",
        ("length/within_corr", "length/within_corr_upper", "length/overall_corr"),
    ),
    ChartSpec(
        TRACES, "Length of posterior traces against prior ones", "",
        "Ratio of the medians. Near 1; a posterior that only sums up the answer is well below.",
        ("style/length_ratio",), zero=True,
    ),
    ChartSpec(
        TRACES, "Short traces", "share",
        "Of prior traces, those below 16 tokens. A rise means that thoughts vanish.",
        ("length/short_share",), zero=True,
    ),
    ChartSpec(
        TRACES, "Forks", "share",
        "Of the tokens of sampled held-out traces, those drawn with an entropy above 1 nat and a second choice above "
        "0.2. A fall to nothing while accuracy does not rise is thinking that no longer weighs.",
        ("eval/forks",), zero=True,
    ),
    ChartSpec(
        TRACES, "Words of doubt", "per 100 tokens",
        "Words such as 'wait' and 'maybe'. A fall to nothing while accuracy does not rise is certainty that was copied "
        "from traces that saw the answer.",
        ("style/hedges_prior", "style/hedges_posterior"), zero=True,
    ),
    ChartSpec(
        TRACES, "Trace length", "tokens",
        "The sources change together. A fall to almost nothing means that reasoning is skipped; a rise to the limit "
        "ends in truncation.",
        ("length/prior", "length/posterior", "length/*"), zero=True,
    ),
    ChartSpec(
        TRACES, "Entropy", "nats",
        "Per token. Falls slowly and stays above 0; at 0 all traces of a group are equal, and none can be preferred.",
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
        "On tasks with a check of traces. Sound traces become frequent, false steps stay rare; not used in training.",
        ("label/prior_*",), zero=True,
    ),
    ChartSpec(
        TRACES, "What posterior traces do", "share",
        "The same when the prompt shows the answer: how well the hint selects the reasoning that leads to it.",
        ("label/posterior_*",), zero=True,
    ),
    ChartSpec(
        TRACES, "Answer leak", "share",
        "How often a posterior trace states the shown answer, against an answer from another problem. The excess "
        "stays near 0.",
        ("leak/posterior_rate", "leak/shuffled_rate", "leak/*"), zero=True,
    ),
    ChartSpec(
        TRACES, "What a wrong hint changes", "share",
        "Of what the hint does to the tokens' log-probs, the part that a wrong hint does too. Read its change, and its "
        "difference between wordings of the posterior prompt; near 100 % only the style is left.",
        ("hint/blind_share",), zero=True,
    ),
    ChartSpec(
        TRACES, "The right hint against a wrong one", "nats",
        "log q(token | right hint) less log q(token | wrong hint), per token. Above 0 where the trace fits its hint.",
        ("hint/contrast_prior", "hint/contrast_posterior"),
    ),
    ChartSpec(
        LEARNING, "What a wrong hint costs on held-out problems", "nats",
        "The bound under the right hint less the bound under a wrong one, with the upper limit of its mean. Above 0: "
        "traces do not defend any answer.",
        ("eval/hint_margin", "eval/hint_margin_upper"),
    ),
    ChartSpec(
        TRACES, "Effective number of posterior traces", "traces",
        "Of the weights p(z) p(y|z) / q(z) within a question. As many as are drawn if the posterior prompt is the "
        "model's own posterior; near 1 if one trace has all the weight.",
        ("posterior/ess",), zero=True,
    ),
    ChartSpec(
        UPDATES, "Where the KL is", "share",
        "Share on the 1 % of the tokens with most of it, and Gini's coefficient. High while the KL is large: few words "
        "make it up; see in the trace browser which.",
        ("style/kl_top1_share", "style/kl_gini"), zero=True,
    ),
    ChartSpec(
        UPDATES, "The KL on words of style", "",
        "Share of the KL on words of doubt and connectives, over their share of tokens. Near 1; above 3 the posterior "
        "teaches how it talks.",
        ("style/kl_words_lift",), zero=True,
    ),
    ChartSpec(
        UPDATES, "Importance ratios", "",
        "Log scale. The mean stays close to 1; a maximum that grows without end means that the distributions under the "
        "two prompts diverge.",
        ("ratio/source_mean", "ratio/source_max"), log=True,
    ),
    ChartSpec(
        UPDATES, "Capped and clipped ratios", "share",
        "Share of weights that were capped or clipped. Small: if it is large, the cap determines most of the update.",
        ("ratio/*_share", "sampler/truncated_share"), zero=True,
    ),
    ChartSpec(
        UPDATES, "Sampler against trainer", "nats",
        "Difference of the sampler's and the trainer's log-probs, per token. A flat line is rounding. A rise means "
        "that the engine has other weights or another dtype than the trainer.",
        ("sampler/gap_mean", "sampler/kl"), log=True,
    ),
    ChartSpec(
        UPDATES, "Age of the weights that sampled", "steps",
        "With generation.ahead: how many steps before the trained weights those were that drew the traces.",
        ("sampler/staleness_mean", "sampler/staleness_max"), zero=True,
    ),
    ChartSpec(
        UPDATES, "Gradient norm by stream", "",
        "Log scale. The streams keep their order; a spike in one of them shows which term of the loss caused it.",
        ("grad_norm/total", "grad_norm/policy", "grad_norm/*"), log=True,
    ),
    ChartSpec(
        UPDATES, "Loss by stream", "",
        "Not a measure of success: the policy loss stays near 0 whatever happens. Look for jumps.",
        ("loss/policy", "loss/*"),
    ),
    ChartSpec(
        UPDATES, "KL per token", "nats",
        "The KL without the effect of length: rises only if the distribution of tokens changes.",
        ("kl/nats_per_token",), zero=True,
    ),
    ChartSpec(
        UPDATES, "Groups", "",
        "Groups that were sampled, and those that the method admitted. With 0 kept, there was nothing to learn from.",
        ("groups/kept", "groups/sampled"), zero=True,
    ),
    ChartSpec(
        UPDATES, "Groups without signal", "share",
        "Admitted groups in which no response has any weight, because all rewards are equal.",
        ("groups/without_signal_share",), zero=True,
    ),
    ChartSpec(
        UPDATES, "Problems by source of data", "",
        "How many problems of the step are from each source: its weight's share, to within a problem.",
        ("data/*/problems",), zero=True,
    ),
    ChartSpec(UPDATES, "Learning rate", "", "Follows the schedule.", ("optim/lr",), zero=True),
    ChartSpec(
        TIME, "Tokens per step", "tokens",
        "Sampled; scored in a forward pass; trained in a forward and a backward pass. The work of a step.",
        ("tokens/generated", "tokens/scored", "tokens/trained"), zero=True,
    ),
    ChartSpec(
        TIME, "Time per step", "seconds",
        "Flat, and most of it spent on sampling. Growth without longer traces points to a fault.",
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
    """The unit: what the chart of the metric says, else what its name does."""
    of_charts = (spec.unit for spec in CHARTS if spec.unit and any(fnmatchcase(metric, m) for m in spec.metrics))
    if unit := next(of_charts, ""):
        return unit
    if metric.endswith(("_share", "_rate", "_at_most")):
        return "share"
    family, _, name = metric.partition("/")
    if "_corr" in name:
        return ""
    if family == "reward" and name not in ("prior", "posterior", "gap", "group_std"):  # a user's function: its own unit
        return ""
    return {"time": "seconds", "length": "tokens", "entropy": "nats", "reward": "nats", "kl": "nats"}.get(family, "")


def _matches(patterns: tuple[str, ...], names: list[str]) -> list[str]:
    found = [name for pattern in patterns for name in names if fnmatchcase(name, pattern)]
    return list(dict.fromkeys(found))


def _plain_charts(names: list[str]) -> list[ChartSpec]:
    """One chart for each family and unit, split if it would have too many lines."""
    families: dict[tuple[str, str], list[str]] = {}
    for name in names:
        families.setdefault((name.partition("/")[0], unit_of(name)), []).append(name)
    charts = []
    for (family, unit), members in families.items():
        for start in range(0, len(members), MOST_LINES):
            lines = tuple(members[start : start + MOST_LINES])
            charts.append(ChartSpec(OTHER, family.replace("_", " "), unit, "", lines))
    return charts
