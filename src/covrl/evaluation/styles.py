"""`covrl prompts`: which wording of the prompts suits a model, from a few sampled traces of each style.

Each style of :mod:`covrl.config.styles`, and the settings' own wording if it differs, renders the same problems.
Traces are sampled from both prompts, and the reference answer is scored after them and after an empty thought. The
style with the largest mean reward of its prior traces is recommended: log p(y|x,z) in nats, with the floor of rewards.
A trace that did not close counts as the floor, because no answer can follow it. So one figure covers both how often
traces close and how good they are, as in the reward of a likelihood method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from covrl.config import PromptConfig, RunConfig, check
from covrl.config.styles import STYLED, STYLES, TEMPLATES
from covrl.evaluation.posterior_gain import (
    FORMAT_SHARE,
    Drawn,
    PosteriorGain,
    draw_roles,
    gain_sentence,
    over_problems,
    posterior_gain,
)
from covrl.generation.base import Generator, Sampling
from covrl.generation.engines import rows_of
from covrl.models.model import LanguageModel
from covrl.prompt_checks import check_lengths, check_rows, check_tokens
from covrl.prompts import ROLES, Prompts
from covrl.records import Output, Problem
from covrl.rewards.likelihood import reward_floor
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, PassLimits, Reading, score
from covrl.statistics import Interval, wilson

OWN = "own"
"""The name of the settings' own wording if it is not that of a style."""

SHORT_TOKENS = 4.0
"""A mean length of prior traces up to which the recommendation notes that the traces hardly contain reasoning."""


@dataclass(frozen=True, slots=True)
class RoleFigures:
    """Traces of one prompt: how many, the shares that closed and that were cut at the limit, their mean tokens.

    ``log_prob`` is the mean over problems of log p(y|x,z) in nats after the traces that closed, with its 95 % interval
    over problems.
    """

    traces: int
    closed: float
    cut: float
    tokens: float
    log_prob: float | None
    log_prob_interval: Interval | None

    def record(self) -> dict[str, Any]:
        """As plain data; ``closed_interval`` is Wilson's, over traces."""
        found = {name: getattr(self, name) for name in ("traces", "closed", "cut", "tokens", "log_prob")}
        ends = self.log_prob_interval
        found |= {"log_prob_interval": list(ends) if ends else None}
        return found | {"closed_interval": list(wilson(self.closed, self.traces)) if self.traces else []}


@dataclass(frozen=True, slots=True)
class Tried:
    """One style on the problems: the two prompts of the first one as text, all traces, and what they are worth.

    ``empty`` is log p(y|x,∅) of each problem, after an empty thought, in nats. ``rewards`` is the mean reward of each
    problem's prior traces, ``notes`` what the chat template makes of the wording.
    """

    name: str
    shown: Mapping[str, str]
    drawn: tuple[Drawn, ...]
    roles: Mapping[str, RoleFigures]
    empty: tuple[float, ...]
    gain: PosteriorGain
    rewards: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def reward(self) -> float:
        return fmean(self.rewards)

    def record(self) -> dict[str, Any]:
        """As plain data."""
        ends, rewards = over_problems(self.empty), over_problems(self.rewards)
        return {
            "style": self.name,
            "prompts": dict(self.shown),
            "notes": list(self.notes),
            **{role: figures.record() for role, figures in self.roles.items()},
            "empty": {"log_prob": fmean(self.empty), "log_prob_interval": list(ends) if ends else None},
            "reward": {"mean": self.reward, "interval": list(rewards) if rewards else None},
            "posterior_gain": self.gain.record() | {"sentence": gain_sentence(self.gain)},
            "examples": {role: self._example(role) for role in ROLES},
        }

    def _example(self, role: str) -> dict[str, Any]:
        """The first trace of a prompt that closed, or the first one."""
        mine = [d for d in self.drawn if d.rollout.source == role]
        first = next((d for d in mine if d.rollout.valid), mine[0])
        return {"problem": first.problem.id, "finish": first.rollout.finish, "trace": first.rollout.text}


def wordings(own: PromptConfig) -> dict[str, PromptConfig]:
    """Each style by name, completed by ``own`` for fields that styles do not set; and ``own`` itself if it is none of
    them."""
    kept = {name: getattr(own, name) for name in PromptConfig.model_fields.keys() - STYLED - {"style"}}
    found: dict[str, PromptConfig] = {style: check(PromptConfig, {"style": style, **kept}) for style in STYLES}
    same = any(all(getattr(own, name) == getattr(each, name) for name in STYLED) for each in found.values())
    return found if same else {OWN: own, **found}


def template_wordings(own: PromptConfig) -> dict[str, PromptConfig]:
    """The wording under each of the six posterior templates, "style" first; a template of ``own`` is not kept.

    Where ``own`` has a wording of its own for the posterior, "style" is that wording.
    """
    hinted = ("posterior_template", "posterior_user", "posterior_open")
    kept = own.model_dump(exclude=set(hinted))
    found = {name: check(PromptConfig, {**kept, "posterior_template": name}) for name in TEMPLATES}
    as_it_is = own if own.posterior_template == "style" else check(PromptConfig, kept)
    return {"style": as_it_is, **found}


def check_style(
    prompts: Prompts, model: LanguageModel, config: RunConfig, problems: Sequence[Problem], max_tokens: int
) -> None:
    """Check that the chat template accepts the wording, that the model can write its tags, and that the problems fit.

    Raises:
        UserError: one of these does not hold.
    """
    limits = config.generation.model_copy(update={"max_trace_tokens": max_tokens})
    check_tokens(prompts, problems)
    check_rows(prompts, model.model.get_input_embeddings().weight.shape[0], problems)
    check_lengths(prompts, model.context_length, config.model_copy(update={"generation": limits}), problems)


def try_style(
    name: str, generator: Generator, model: LanguageModel, prompts: Prompts, problems: Sequence[Problem],
    config: RunConfig, samples: int, max_tokens: int,
) -> Tried:  # fmt: skip
    """Sample ``samples`` traces a problem from both prompts and score what comes after them."""
    seed, limits = config.training.seed, PassLimits.of(config.training)
    sampling = Sampling(max_tokens, prompts.config.close, config.generation.temperature)
    drawn = draw_roles(
        generator, model, prompts, problems, sampling, samples, seed,
        rows_per_pass=rows_of(config.generation), tokens_per_pass=limits.tokens,
    )  # fmt: skip
    direct = [(p, next(d.rollout for d in drawn if d.problem is p)) for p in problems]
    context, reading = Context("direct", prompts.direct_row), Reading("direct", ("direct",), log_prob, ("direct",))
    scores = score({"policy": model}, (context,), (reading,), direct, limits.tokens, limits.logits_bytes)
    return Tried(
        name,
        {role: prompts.text(problems[0], role) for role in ROLES},
        tuple(drawn),
        {role: role_figures([d for d in drawn if d.rollout.source == role], seed) for role in ROLES},
        tuple(float(s[Output("direct", "direct")].sum()) for s in scores),
        posterior_gain([d.worth for d in drawn], seed),
        tuple(trace_rewards(prompts, drawn)),
        prompts.notes,
    )


def role_figures(drawn: Sequence[Drawn], seed: int = 0) -> RoleFigures:
    """The figures of some traces of one prompt."""
    count = len(drawn)
    each = means_by_problem([(d.problem.id, d.log_prob) for d in drawn if d.log_prob is not None])
    return RoleFigures(
        traces=count,
        closed=sum(d.rollout.valid for d in drawn) / count,
        cut=sum(d.rollout.finish == "length" for d in drawn) / count,
        tokens=fmean(len(d.rollout.trace_ids) for d in drawn),
        log_prob=fmean(each.values()) if each else None,
        log_prob_interval=over_problems(list(each.values()), seed),
    )


def trace_rewards(prompts: Prompts, drawn: Sequence[Drawn]) -> list[float]:
    """The mean reward of each problem's prior traces in nats, in the order of the problems (see above)."""
    rows = []
    for d in drawn:
        if d.rollout.source == "prior":
            floor = reward_floor(len(prompts.answer(d.problem)))
            rows.append((d.problem.id, floor if d.log_prob is None else max(d.log_prob, floor)))
    return list(means_by_problem(rows).values())


def means_by_problem(rows: Sequence[tuple[str, float]]) -> dict[str, float]:
    """The mean of each problem's values, in the order in which the problems come."""
    found: dict[str, list[float]] = {}
    for problem, value in rows:
        found.setdefault(problem, []).append(value)
    return {problem: fmean(values) for problem, values in found.items()}


def recommend(tried: Sequence[Tried], max_tokens: int) -> tuple[str | None, list[str]]:
    """The style with the greatest mean reward of prior traces, or None if no trace closed; and the reasons, as
    sentences."""
    best = max(tried, key=lambda t: t.reward)
    prior = best.roles["prior"]
    if all(t.roles["prior"].closed == 0 for t in tried):
        cut = fmean(t.roles["prior"].cut for t in tried)
        return None, [
            f"No style is recommended: no prior trace closed under any of them ({cut:.0%} were cut at {max_tokens} "
            "tokens); give them more room (--max-tokens), or teach a wording with covrl warm-format, where the "
            "problems carry worked solutions."
        ]
    others = sorted((t for t in tried if t is not best), key=lambda t: -t.reward)
    shares = ", ".join(f"{t.name} {t.roles['prior'].closed:.0%}" for t in others)
    earned = ", ".join(f"{t.name} {t.reward:.1f}" for t in others)
    what = "the wording of the settings" if best.name == OWN else f'prompts.style = "{best.name}"'
    said = [
        f"Recommended: {what}. {prior.closed:.0%} of its prior traces close{f' ({shares})' if others else ''}, and one "
        f"earns {best.reward:.1f} nats on average{f' ({earned})' if others else ''}.",
        *([_lead(best, others[0])] if others else []),
        *_cautions(best, max_tokens),
        gain_sentence(best.gain),
    ]
    return best.name, said


def recommend_template(tried: Sequence[Tried]) -> tuple[str | None, list[str]]:
    """The posterior template with the greatest posterior gain (None: none has one), and what that does not show."""
    known = [t for t in tried if t.gain.nats is not None]
    if not known:
        return None, ["No template is recommended: under none of them have closed traces of both prompts been sampled."]
    best = max(known, key=lambda t: t.gain.nats or 0.0)
    others = ", ".join(f"{t.name} {t.gain.nats:.1f}" for t in sorted(known, key=lambda t: -(t.gain.nats or 0.0))[1:])
    return best.name, [
        f'Greatest posterior gain: prompts.posterior_template = "{best.name}", {best.gain.nats:.1f} nats'
        f"{f' ({others})' if others else ''}.",
        gain_sentence(best.gain),
        "A gain does not tell a trace that derives the answer from one that copies it: covrl preflight does, by what a "
        "wrong hint costs and how far it pulls.",
    ]


def _lead(best: Tried, second: Tried) -> str:
    """Whether the lead of the best style over the second is decided on these problems."""
    each = [a - b for a, b in zip(best.rewards, second.rewards, strict=True)]
    ends = over_problems(each)
    if ends is None:
        return f"One problem does not decide between it and {second.name}: take more (--limit)."
    measured = f"{fmean(each):.1f} nats, 95 % {ends.low:.1f} to {ends.high:.1f}"
    if ends.low > 0:
        return f"Its lead over {second.name} is {measured}."
    return f"Its lead over {second.name} is not decided by {len(each)} problems ({measured}): take more (--limit)."


def _cautions(best: Tried, max_tokens: int) -> Iterator[str]:
    """What to know of the best style before training with it."""
    prior = best.roles["prior"]
    if prior.closed < FORMAT_SHARE:
        yield (
            f"Under {FORMAT_SHARE:.0%} is too few to train on: teach the wording first with covrl warm-format, where "
            "the problems carry worked solutions."
        )
    if prior.cut > (1 - prior.closed) / 2:
        yield f"{prior.cut:.0%} were cut at {max_tokens} tokens and might have closed later (--max-tokens)."
    if prior.tokens <= SHORT_TOKENS:
        yield f"Its traces have {prior.tokens:.1f} tokens: the model answers at once and does not think."
    after = means_by_problem(
        [(d.problem.id, d.log_prob) for d in best.drawn if d.rollout.source == "prior" and d.log_prob is not None]
    )
    empty = dict(zip(dict.fromkeys(d.problem.id for d in best.drawn), best.empty, strict=True))
    differences = [value - empty[problem] for problem, value in after.items()]
    ends = over_problems(differences)
    if ends is not None and ends.high < 0:
        yield (
            f"The answer is less likely after its traces than after an empty thought ({fmean(differences):.1f} nats, "
            f"95 % {ends.low:.1f} to {ends.high:.1f}): as yet thoughts do not help."
        )
