"""OPSD, NRT, the EM control's weights and the contrast of hints through the production path, by enumeration.

The reference side is plain loops over single rows of the model's own forward, as in test_family.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from covrl.algorithms.rationalise import Rationalise
from covrl.records import Group, Rollout
from covrl.training.run import Run
from covrl.training.scores import score_groups
from exact import world
from exact.test_family import deviation, expected_gradient, fixed, stopping
from exact.world import CLOSE, PROBLEM, A, B

NO_HINT = replace(PROBLEM, hint="")
THOUGHTS = [[(0, 2), (1, 2), (1, 0, 2)], [(0, 2), (0, 1, 1), (2,)]]


@dataclass
class Plain:
    """One trace read plainly: log-probs ``[T, 3]`` of the prior and of the teacher, of its tokens ``[T]``, its answer
    ``[A]`` or None, and the answer after an empty thought ``[A]``."""

    prior: Tensor
    teacher: Tensor
    tokens: Tensor
    hinted: Tensor
    answer: Tensor | None
    empty: Tensor

    def detached(self) -> Plain:
        return Plain(**{k: v if v is None else v.detach() for k, v in vars(self).items()})


def read(run: Run, ids: Sequence[int], hint: tuple[int, ...] = (B,), appended: bool = False) -> Plain:
    teacher = "reference" if "reference" in run.models else "policy"

    def logs(model: str, prompt: tuple[int, ...]) -> Tensor:
        row = run.models[model].model(torch.tensor([[*prompt, *ids]])).logits[0]
        return torch.log_softmax(row, -1)[len(prompt) - 1 : -1]

    prior, hinted = logs("policy", (A,)), logs(teacher, (A, *hint))
    at = torch.tensor([[i] for i in ids])
    before = (A, *ids, *((CLOSE,) if appended else ()))
    closed = appended or ids[-1] == CLOSE
    return Plain(
        prior,
        hinted.detach(),
        prior.gather(-1, at)[:, 0],
        hinted.detach().gather(-1, at)[:, 0],
        world.plain_log_probs(run, before, (B, CLOSE)) if closed else None,
        world.plain_log_probs(run, (A, CLOSE), (B, CLOSE)),
    )


def each_divergence(r: Plain, form: str) -> Tensor:
    """What each entry of the vocabulary adds at each token, ``[T, 3]``."""
    p, q = r.prior.exp(), r.teacher.exp()
    if form == "forward":
        return q * (q.log() - p.log())
    if form == "reverse":
        return p * (p.log() - q.log())
    m = (p + q) / 2
    return (q * (q / m).log() + p * (p / m).log()) / 2


def state_opsd(old: list[Plain], new: list[Plain], s: dict[str, Any]) -> Tensor:
    total, tokens = torch.zeros((), dtype=torch.float64), sum(len(r.tokens) for r in old)
    limit = torch.tensor(s.get("clip_limit", 0.5), dtype=torch.float64)
    for o, n in zip(old, new, strict=True):
        if s.get("estimator") == "sampled":
            total = total - ((o.hinted - o.tokens) * n.tokens).sum() / tokens
            continue
        entries = each_divergence(n, s.get("divergence", "forward"))
        clip = s.get("clip", "token")
        if clip == "entry":
            entries = torch.minimum(entries, limit)
        each = entries.sum(-1)
        total = total + (torch.minimum(each, limit) if clip == "token" else each).sum() / tokens
        if n.answer is not None:
            total = total - s.get("nll_weight", 0.0) * n.answer.mean() / len(old)
    return total


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log_prob": lambda c, b: c.log().sum(),
    "prob": lambda c, b: c.prod(),
    "geometric": lambda c, b: c.prod() ** (1 / len(c)),
    "arithmetic": lambda c, b: c.mean(),
    "inverse": lambda c, b: (c / b).mean(),
    "surprise": lambda c, b: (-b.log() * c).mean(),
}


def state_nrt(old: list[Plain], new: list[Plain], s: dict[str, Any]) -> Tensor:
    f = FORMS[s.get("form", "surprise")]
    values = [0.0 if r.answer is None else float(f(r.answer.exp(), r.empty.exp())) for r in old]
    mean, below = sum(values) / len(values), deviation(values) + 1e-6
    total = torch.zeros((), dtype=torch.float64)
    for o, n, value in zip(old, new, values, strict=True):
        a = (value - mean) / below
        for before, now in zip(o.tokens, n.tokens, strict=True):
            rho = float((now - before).detach().exp())
            if not (a > 0 and rho > 1.28) and not (a < 0 and rho < 0.8):
                total = total - min(max(rho, 0.8), 1.28) * a * now
        if n.answer is not None:
            total = total - n.answer.sum()
    return total / len(old)


def state_importance(old: list[Plain], new: list[Plain], s: dict[str, Any]) -> Tensor:
    del s
    raw = [0.0 if r.answer is None else math.exp(float(r.tokens.sum() + r.answer.sum() - r.hinted.sum())) for r in old]
    total = torch.zeros((), dtype=torch.float64)
    for n, w in zip(new, raw, strict=True):
        if n.answer is not None:
            total = total - w / sum(raw) * (n.tokens.sum() + n.answer.sum())
    return total


STATED: dict[str, tuple[str, dict[str, Any], Callable[..., Tensor]]] = {
    "opsd": ("opsd", {"nll_weight": 0.3}, state_opsd),
    "opsd, reverse, entries": ("opsd", {"divergence": "reverse", "clip": "entry", "clip_limit": 0.05}, state_opsd),
    "opsd, jsd, live": ("opsd", {"divergence": "jsd", "clip": "none", "teacher": "live"}, state_opsd),
    "opsd, sampled": ("opsd", {"estimator": "sampled"}, state_opsd),
    "nrt": ("nrt", {}, state_nrt),
    "nrt, inverse": ("nrt", {"form": "inverse"}, state_nrt),
    "rationalise, importance": ("rationalise", {"weights": "importance"}, state_importance),
}


@pytest.mark.parametrize("case", STATED)
@pytest.mark.parametrize("moved", [False, True])
def test_the_gradient_of_a_group_is_that_of_the_stated_loss(case: str, moved: bool) -> None:
    """A live teacher is read again after the weights moved, as a constant."""
    name, settings, stated = STATED[case]
    run = world.make_run(seed=13, name=name, group=4, **settings)
    before = world.get_weights(run)
    torch.manual_seed(4)
    drift = 0.3 * torch.randn_like(before) if moved else None
    for traces in THOUGHTS:
        rollouts = [world.rollout(run, z, run.algorithm.source, False, index=i) for i, z in enumerate(traces)]  # ty: ignore
        production, _ = world.production_gradient(run, rollouts, drift)
        old = [read(run, z).detached() for z in traces]
        if drift is not None:
            world.set_weights(run, before + drift)
        expected = world.gradient_of(run, stated(old, [read(run, z) for z in traces], settings))
        world.set_weights(run, before)
        assert float(expected.norm()) > 1e-6
        assert world.relative(production, expected) < 1e-9


def rows(run: Run, traces: Sequence[tuple[int, ...]], source: str = "prior", problem: Any = PROBLEM) -> list[Rollout]:
    return [world.rollout(run, z, source, False, problem, i) for i, z in enumerate(traces)]


# OPSD


def test_a_live_teacher_that_is_shown_nothing_teaches_nothing() -> None:
    run = world.make_run(seed=3, name="opsd", teacher="live")
    found, report = world.production_gradient(run, rows(run, [(0, 2), (1, 0, 2)], problem=NO_HINT), problem=NO_HINT)
    assert float(found.norm()) < 1e-12
    assert report.losses["distil"] == pytest.approx(0.0, abs=1e-12)


def test_covrls_kl_with_the_composite_held_still_is_half_of_it() -> None:
    """The same states, the same denominator; CoVRL's own KL is live in both and another gradient."""
    run = world.make_run(seed=3, name="opsd", teacher="live", clip="none")
    traces = [(0, 2), (1, 0, 2)]
    found, _ = world.production_gradient(run, rows(run, traces))
    read_now = [read(run, z) for z in traces]
    middle = [((r.prior.exp() + r.teacher.exp()) / 2).detach() for r in read_now]
    still = sum((m * (m.log() - r.prior)).sum() for m, r in zip(middle, read_now, strict=True))
    assert isinstance(still, Tensor)
    assert world.relative(0.5 * found, world.gradient_of(run, still / 5)) < 1e-9
    both = torch.stack([world.plain_reading(run, z, appended=False).kl.sum() for z in traces]).sum()
    assert world.relative(0.5 * found, world.gradient_of(run, both / 5)) > 1e-2


def test_sampled_tokens_have_the_reverse_gradient_of_the_states_that_are_visited() -> None:
    """Expected over all traces of two tokens, each of which is a group of its own."""
    run = world.make_run(seed=5, name="opsd", group=1, estimator="sampled")
    found = expected_gradient(run, fixed(2), 1)
    read_now = [read(run, z, appended=True) for z, _ in fixed(2)]
    chances = [float(r.tokens.detach().sum().exp()) for r in read_now]
    states = sum(c * each_divergence(r, "reverse").sum() / 2 for c, r in zip(chances, read_now, strict=True))
    assert isinstance(states, Tensor)
    assert world.relative(found, world.gradient_of(run, states)) < 1e-9


# NRT


@pytest.mark.parametrize("form", FORMS)
def test_the_exact_form_climbs_the_expected_reward(form: str) -> None:
    settings = {"form": form, "answer_weight": "exact", "advantage": "leave_one_out"}
    run = world.make_run(seed=11, name="nrt", group=2, **settings)
    total = torch.zeros((), dtype=torch.float64)
    for z, appended in fixed(1):
        r = read(run, z, appended=appended)
        assert r.answer is not None
        total = total + r.tokens.sum().exp() * FORMS[form](r.answer.exp(), r.empty.detach().exp())
    assert world.relative(expected_gradient(run, fixed(1), 2), world.gradient_of(run, -total)) < 1e-9


@pytest.mark.parametrize(("form", "name"), [("log_prob", "jepo"), ("prob", "verifree")])
def test_with_its_own_weights_it_is_jepo_or_verifree(form: str, name: str) -> None:
    for traces in THOUGHTS:
        settings = {"form": form, "answer_weight": "exact", "advantage": "leave_one_out"}
        ours, theirs = (world.make_run(seed=7, **s, group=3) for s in ({"name": "nrt", **settings}, {"name": name}))
        found = [world.production_gradient(run, rows(run, traces))[0] for run in (ours, theirs)]
        assert world.relative(*found) < 1e-9


# The EM control


def test_importance_weights_average_to_the_answers_probability_whatever_the_posterior() -> None:
    """E_q w = p(y|x), with q of the reference side and w of the method."""
    run = world.make_run(seed=9, name="rationalise", weights="importance")
    traces = [z for z, _ in stopping(2) if z[-1] == CLOSE]
    (group,) = score_groups(run, [Group(PROBLEM, tuple(rows(run, traces, "posterior")))])
    method = run.algorithm
    assert isinstance(method, Rationalise)
    plain = [read(run, z).detached() for z in traces]
    pairs = zip(group.rollouts, group.scores, strict=True)
    log_weights = [weight for r, s in pairs if (weight := method.log_weight(r, s)) is not None]
    mean = sum(math.exp(float(r.hinted.sum()) + w) for r, w in zip(plain, log_weights, strict=True))
    marginal = sum(math.exp(float(r.tokens.sum() + r.answer.sum())) for r in plain if r.answer is not None)
    assert mean == pytest.approx(marginal, rel=1e-12)


def test_keeping_traces_whose_sampled_answer_is_right_fits_the_prior_to_the_posterior_times_the_likelihood() -> None:
    run = world.make_run(seed=9, name="rationalise", group=1, weights="sampled")
    traces = [z for z, _ in stopping(2) if z[-1] == CLOSE]
    found, value = torch.zeros_like(world.get_weights(run)), torch.zeros((), dtype=torch.float64)
    for z in traces:
        r = read(run, z)
        assert r.answer is not None
        chance = math.exp(float(r.hinted.sum() + r.answer.detach().sum()))
        kept = replace(world.rollout(run, z, "posterior", False), correct="right")
        found += chance * world.production_gradient(run, [kept])[0]
        value = value - chance * (r.tokens.sum() + r.answer.sum())
    assert world.relative(found, world.gradient_of(run, value)) < 1e-9


# The contrast


def contrasted(values: Sequence[float], right: Sequence[Tensor], wrong: Sequence[Tensor]) -> list[Tensor]:
    """A′ of each token in plain loops, λ = 0.5."""
    scale, made = deviation(values), []
    for a, r, w in zip(values, right, wrong, strict=True):
        each = []
        for x, y in zip(r, w, strict=True):
            residual = 0.5 * math.tanh(float(x - y) / 0.02)
            moved = a + scale * residual
            each.append(a if abs(residual) <= 0.02 else moved if moved * a > 0 else 0.0)
        made.append(torch.tensor(each, dtype=torch.float64))
    return made


FOILED = replace(PROBLEM, foil="a")


@pytest.mark.parametrize("foil", ["a", "b"])
@pytest.mark.parametrize("name", ["covrl", "grpo"])
def test_a_foil_that_is_the_hint_changes_nothing_and_another_one_does(name: str, foil: str) -> None:
    problem, traces = (
        replace(PROBLEM, foil=foil),
        [(0, 2, 1, 2), (1, 2, 0, 2)] if name == "grpo" else [(0, 2), (1, 0, 2)],
    )
    found = []
    for contrast in (0.0, 0.5):
        run = world.make_run(seed=21, name=name, contrast=contrast)
        made = [replace(r, reward=float(i)) for i, r in enumerate(rows(run, traces, problem=problem))]
        found.append(world.production_gradient(run, made, problem=problem)[0])
    assert (world.relative(found[1], found[0]) < 1e-9) == (foil == "b")


def test_the_contrasted_gradient_of_covrl_is_the_stated_one() -> None:
    """Of the policy stream alone; all traces are the prior's, so c is the composite over the prior."""
    settings = {"beta": 0.0, "nll": "off", "ratio_cap": 1e9}
    run = world.make_run(seed=22, contrast=0.5, **settings)
    traces = [(0, 2), (1, 0, 2)]
    found, _ = world.production_gradient(run, rows(run, traces, problem=FOILED), problem=FOILED)
    old = [world.plain_reading(run, z, appended=False) for z in traces]
    rewards = [float(r.answer.sum()) for r in old if r.answer is not None]
    values = [reward - sum(rewards) / 2 for reward in rewards]
    wrong = [read(run, z, hint=(A,)).hinted for z in traces]
    total = torch.zeros((), dtype=torch.float64)
    for r, credit in zip(old, contrasted(values, [r.posterior for r in old], wrong), strict=True):
        m = (r.prior.exp() + r.posterior.exp()) / 2
        total = total - (m.detach() / r.prior.detach().exp() * credit * m.log()).sum()
    assert world.relative(found, world.gradient_of(run, total / 5)) < 1e-9


def test_the_contrasted_gradient_of_grpo_is_the_stated_one() -> None:
    run = world.make_run(seed=22, name="grpo", contrast=0.5, advantage="mean")
    traces = [(0, 2, 1, 2), (1, 2, 0, 2), (0, 0, 2, 2)]
    made = [replace(r, reward=float(i)) for i, r in enumerate(rows(run, traces, problem=FOILED))]
    found, _ = world.production_gradient(run, made, problem=FOILED)
    right, wrong = ([read(run, z, hint=hint).hinted for z in traces] for hint in ((B,), (A,)))
    total = torch.zeros((), dtype=torch.float64)
    for z, credit in zip(traces, contrasted([-1.0, 0.0, 1.0], right, wrong), strict=True):
        total = total - (credit * world.plain_log_probs(run, (A,), z)).sum()
    assert world.relative(found, world.gradient_of(run, total / 12)) < 1e-9
