"""The metrics of a step: of its updates, of its groups, of its time; and which a step may lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from covrl.evaluation.hints import Q, fit_metrics
from covrl.evaluation.information import first_reading, information_metrics
from covrl.evaluation.trace_monitors import trace_metrics
from covrl.records import Credit, Output, ScoredGroup, TraceGroup
from covrl.training.collect import Batch, Clock
from covrl.training.gradient import Gradient
from covrl.training.monitors import (
    label_metrics,
    origin_metrics,
    reward_metrics,
    rollout_metrics,
    token_metrics,
    verdict_metrics,
)
from covrl.training.reading_plan import ReadingPlan
from covrl.training.run import Run
from covrl.training.views import trace_group

TOTALS = ("train/rows", "train/dropped_traces", "tokens/trained")
"""Metrics of an update that add up over the updates of a step; the others are averaged."""

OF_NO_UPDATE = {"optim/updates": 0.0} | dict.fromkeys(TOTALS, 0.0)
"""Metrics of a step that was left out."""

_LABELLED = ("nll/selected_unsound_share", "leak/unsound_ends_in_hint_share")
_LENGTHS = ("length/median_prior", "length/median_posterior", "length/short_share", "bound/mc_gap")
_LENGTHS += ("length/within_corr", "length/within_corr_upper", "length/overall_corr")
_HEDGES = ("style/hedges_prior", "style/hedges_posterior")
_BOTH_PROMPTS = ("style/length_ratio", "style/kl_top1_share", "style/kl_gini")
_BOTH_PROMPTS += ("posterior/ess", "posterior/log_w_var")
_FOILS = ("hint/contrast_prior", "hint/contrast_posterior", "hint/blind_share", "style/kl_words_lift")
_THOUGHTS = ("gain", "read", "helps_share", "empty_log_prob")
_EVALUATED = ("eval/log_prob", "eval/log_prob_closed", "eval/closed_share", "eval/forks")
_READ = ("eval/answer_information", "eval/answer_entropy", *(f"eval/thought_{name}" for name in _THOUGHTS))
_MARGIN = ("eval/hint_margin", "eval/hint_margin_upper")
_GRADED = ("eval/accuracy", "eval/sampled", "eval/answer_greedy", "eval/majority", "eval/unknown_share")
_WATCHED = ("watch/parted", "watch/reward_rise", "watch/accuracy_gain", "watch/accuracy_gain_at_most")


def comes_later(run: Run, name: str) -> bool:
    """Whether a step that is trained on may lack a metric that this run reports.

    It was not due then, or nothing was drawn that it is made of.
    """
    config, family = run.config, name.partition("/")[0]
    if family in ("eval", "watch"):
        if not (config.evaluation.every and run.evaluator and run.held_out):
            return False
        if name in _READ:
            return reads_answers(run) and ("thought" not in name or bool(config.report.thoughts_every))
        if name in _MARGIN:
            return bool(config.report.thoughts_every) and reads_hints(run)
        graded = run.evaluator.grade is not None
        return name in _EVALUATED or (graded and name in (*_GRADED, *_WATCHED, *["eval/sound"] * bool(run.label)))
    if name in ("answer/information", "answer/entropy"):
        return reads_answers(run)
    if name in (*_LENGTHS, *_HEDGES):
        return reads_answers(run)
    if name in _BOTH_PROMPTS:
        return reads_hints(run)
    if name in _FOILS:
        return bool(config.report.thoughts_every) and reads_hints(run)
    if family == "thought" and name.partition("/")[2] in _THOUGHTS:
        return bool(config.report.thoughts_every) and reads_answers(run)
    if family == "grad_norm":
        names = {f"grad_norm/{stream.name}" for stream in run.algorithm.streams}
        return bool(config.training.stream_norms_every) and name in names
    if family == "label" or name in _LABELLED:
        return run.label is not None
    if family == "data":
        return name.split("/")[1] in {problem.origin for problem in run.source.problems}
    if name == "guard/publish_gap":
        return bool(config.guards.publish_check_every)
    return name == "kl/capped_share" and bool(run.algorithm.models)


def reads_answers(run: Run) -> bool:
    """Whether the method scores the answer after a trace by the policy."""
    return bool(first_reading(run.algorithm.contexts, run.algorithm.scoring))


def reads_hints(run: Run) -> bool:
    """Whether it also scores traces under the prompt that shows the answer."""
    return reads_answers(run) and any(Output(r.span, name) == Q for r in run.algorithm.scoring for name in r.outputs)


def update_metrics(updates: Sequence[tuple[Gradient, Mapping[str, float]]]) -> dict[str, float]:
    """Of a step's updates, each with its gradient's norm by model: means of each metric, and sums of :data:`TOTALS`.

    A mean is over the updates that have the metric: one in which no trace had weight has no stream's norm.
    """
    each = [_of_gradient(made, norms) for made, norms in updates]
    found = {name: [one[name] for one in each if name in one] for name in dict.fromkeys(n for one in each for n in one)}
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return {"optim/updates": float(len(each))} | means | {name: sum(found.get(name, [])) for name in TOTALS}


def _of_gradient(made: Gradient, norms: Mapping[str, float]) -> dict[str, float]:
    metrics = {"train/rows": float(made.rows), "train/dropped_traces": float(made.dropped)}
    metrics |= {"tokens/trained": float(made.tokens)}
    metrics |= {f"loss/{name}": value for name, value in made.losses.items()}
    metrics |= {f"grad_norm/{name}": value for name, value in made.norms.items()}
    metrics |= {f"grad_norm/{name}": norm for name, norm in norms.items() if name != "policy"}
    return metrics | {"grad_norm/total": norms["policy"]}


def step_metrics(run: Run, batch: Batch, plan: ReadingPlan) -> dict[str, float]:
    """What was sampled, scored, kept and updated, as one table of numbers."""
    sampled, kept, credits = batch.sampled, batch.kept, batch.credits
    metrics = rollout_metrics(sampled) | verdict_metrics(sampled) | token_metrics(batch.scored)
    metrics |= run.mismatch.metrics(kept if plan.read_off or plan.in_pass else batch.scored)
    metrics |= {"groups/kept": float(len(kept)), "groups/sampled": float(len(sampled))}
    if "guard/skipped" not in batch.metrics:
        metrics |= reward_metrics(kept, credits) | run.algorithm.monitors(kept, credits) | information_metrics(kept)
        if reads_answers(run):
            metrics |= trace_metrics(kept, credits, run.config.report.hedging_words) | fit_metrics(kept)
        metrics |= origin_metrics(sampled, kept, credits)
    if plan.in_pass and kept:  # groups that were too large for a pass were scored before it
        metrics["tokens/scored"] = token_metrics(kept)["tokens/scored"]
    metrics |= batch.metrics
    return metrics | (label_metrics(kept, credits, run.label, run.config.prompts.close) if run.label else {})


def times(clock: Clock) -> dict[str, float]:
    """Seconds of each phase, and of what is in a step beside sampling, scoring and training."""
    counted = sum(clock.seconds.get(phase, 0.0) for phase in ("generate", "score", "train"))
    found = {f"time/{phase}": seconds for phase, seconds in clock.seconds.items()}
    return found | {"time/other": clock.seconds["step"] - counted}


def traces_shown(
    run: Run, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]
) -> tuple[TraceGroup, ...]:
    """The first groups of the step, as a person reads them, on the steps that are kept for reading."""
    if not run.due(run.config.report.traces_every, run.done):
        return ()
    count = run.config.report.groups_shown
    return tuple(
        trace_group(group, own, run.prompts, run.label)
        for group, own in zip(groups[:count], credits[:count], strict=True)
    )
