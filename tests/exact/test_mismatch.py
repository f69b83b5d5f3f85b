"""A sampler that differs from the trainer, and its correction: expected gradients by enumeration, through whole steps.

The sampler is a second model of the three-token world. Its traces, with its own log-probs, go through ``Run.step``
(score, credit, correction, pack, loss, backward), each group weighted with its probability under the sampler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from covrl.generation.base import Draw, Sampling
from covrl.models.model import LanguageModel
from covrl.objectives import truncated_importance
from covrl.records import Group, Request, Rollout
from covrl.training.mismatch import SAMPLED_FROM
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.step import take_step
from exact import world

NO_CAP = 1e9


class Scripted:
    """Returns the given traces with the given log-probs, whatever is asked."""

    def __init__(self, rollouts: Sequence[Rollout], of_trainer: bool = False) -> None:
        self.rollouts = list(rollouts)
        self.of_trainer = of_trainer

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        assert [r.source for r in requests] == [r.source for r in self.rollouts]
        return self.rollouts

    def publish(self, version: int) -> None:
        pass


def make_run(name: str, group: int, level: str, cap: float, **settings: Any) -> Run:
    run = world.make_run(1, name=name, group=group, **settings)
    generation = run.config.generation.model_copy(update={"sampler_correction": level, "sampler_cap": cap})
    training = run.config.training.model_copy(update={"gradient_clip": 1e9, "stream_norms_every": 0})
    report = run.config.report.model_copy(update={"traces_every": 10**6})
    guards = run.config.guards.model_copy(update={"publish_check_every": 0})
    run.config = run.config.model_copy(
        update={"generation": generation, "training": training, "report": report, "guards": guards}
    )
    return run


def sampler() -> LanguageModel:
    """Not the trainer's weights, but not far from them."""
    other = world.tiny_model(7)
    with torch.no_grad():
        for own, trained in zip(other.parameters(), world.tiny_model(1).parameters(), strict=True):
            own.lerp_(trained, 0.85)
    return LanguageModel(other)


def log_probs_of(model: Any, prompt: Sequence[int], ids: Sequence[int]) -> Tensor:
    logs = torch.log_softmax(model(torch.tensor([[*prompt, *ids]])).logits[0], -1)[len(prompt) - 1 : -1]
    return logs.gather(-1, torch.tensor(ids)[:, None])[:, 0]


def trace(run: Run, ids: Sequence[int], source: str, index: int, drawn_by: Any, reward: float | None) -> Rollout:
    """A trace of fixed length, whose closing tag is appended, with the log-probs of the model that drew it."""
    response = run.algorithm.samples == "response"
    made = world.rollout(run, ids, source, appended=not response, index=index)
    with torch.no_grad():
        logs = log_probs_of(drawn_by, made.request.prompt_ids, ids)
    return replace(made, log_probs=tuple(logs.tolist()), reward=reward)


def step_gradient(run: Run, rollouts: Sequence[Rollout], of_trainer: bool = False) -> Tensor:
    """The gradient of one whole step of the loop on these traces; the weights are as before afterwards."""
    run.generator = Scripted(rollouts, of_trainer)
    before = world.get_weights(run)
    found = world.gradient_of_step(run)
    world.set_weights(run, before)
    return found


def expected_step(run: Run, drawn_by: Any, length: int, sources: Sequence[str], rewards: dict | None) -> Tensor:
    """The step's gradient in expectation over all groups that ``drawn_by`` can sample."""
    total = torch.zeros_like(world.get_weights(run))
    for group in product(world.fixed_traces(length), repeat=len(sources)):
        rollouts = [
            trace(run, ids, source, i, drawn_by, rewards[ids] if rewards else None)
            for i, (ids, source) in enumerate(zip(group, sources, strict=True))
        ]
        probability = math.exp(sum(sum(r.log_probs) for r in rollouts))
        total += probability * step_gradient(run, rollouts)
    return total


def rewards_of(length: int) -> dict[tuple[int, ...], float]:
    return {ids: float(7 * i % 5) / 4 for i, ids in enumerate(world.fixed_traces(length))}


def objective(run: Run, length: int, rewards: dict, at: Sequence[str], drawn_by: Any) -> Tensor:
    """E[R] where position t is drawn by the policy for at[t] = "policy", else by the sampler; with gradient."""
    prompt = run.prompts.prior(world.PROBLEM)
    total = torch.zeros((), dtype=torch.float64)
    for ids in world.fixed_traces(length):
        policy = log_probs_of(run.models["policy"].model, prompt, ids)
        other = log_probs_of(drawn_by, prompt, ids).detach()
        who = torch.tensor([a == "policy" for a in at])
        total = total + torch.where(who, policy, other).sum().exp() * rewards[ids]
    return total


RLOO = {"surrogate": "plain"}


@pytest.mark.parametrize("length", [1, 2])
def test_whole_traces_corrected_without_a_cap_give_the_unbiased_gradient(length: int) -> None:
    run, rewards, other = make_run("rloo", 2, "sequence", NO_CAP, **RLOO), rewards_of(length), sampler().model
    found = expected_step(run, other, length, ["prior"] * 2, rewards)
    wanted = -world.gradient_of(run, objective(run, length, rewards, ["policy"] * length, other))
    assert world.relative(found, wanted) < 1e-9


def test_single_tokens_corrected_without_a_cap_give_the_unbiased_gradient() -> None:
    run, rewards, other = make_run("rloo", 2, "token", NO_CAP, **RLOO), rewards_of(1), sampler().model
    found = expected_step(run, other, 1, ["prior"] * 2, rewards)
    wanted = -world.gradient_of(run, objective(run, 1, rewards, ["policy"], other))
    assert world.relative(found, wanted) < 1e-9


def test_the_token_level_has_the_gradient_of_one_token_from_the_policy_and_the_others_from_the_sampler() -> None:
    """So it is not the policy's own gradient on longer traces: the sampler's choice of prefixes stays."""
    run, rewards, other = make_run("rloo", 2, "token", NO_CAP, **RLOO), rewards_of(2), sampler().model
    found = expected_step(run, other, 2, ["prior"] * 2, rewards)
    parts = [objective(run, 2, rewards, at, other) for at in (["policy", "sampler"], ["sampler", "policy"])]
    assert world.relative(found, -world.gradient_of(run, parts[0] + parts[1])) < 1e-9
    unbiased = -world.gradient_of(run, objective(run, 2, rewards, ["policy"] * 2, other))
    uncorrected = expected_step(make_run("rloo", 2, "off", NO_CAP, **RLOO), other, 2, ["prior"] * 2, rewards)
    assert 0.01 < world.relative(found, unbiased) < 0.5 * world.relative(uncorrected, unbiased)


def test_all_streams_of_covrl_have_their_on_policy_expectation() -> None:
    """Policy, KL and NLL: the step's expected gradient is that of a step whose traces the trainer drew itself."""
    settings = {"nll": "exact", "ratio_cap": 1e6}
    corrected, plain = (
        make_run("covrl", 2, "sequence", NO_CAP, **settings),
        make_run("covrl", 2, "off", 2.0, **settings),
    )
    sources = ["prior", "posterior"]
    on_policy = expected_step(plain, plain.models["policy"].model, 2, sources, None)
    assert world.relative(expected_step(corrected, sampler().model, 2, sources, None), on_policy) < 1e-9
    assert world.relative(expected_step(plain, sampler().model, 2, sources, None), on_policy) > 0.01


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_step_has_the_stated_weights_under_a_cap(level: str) -> None:
    """−Σ_i Σ_t min(w, C)·A_i·∇log π / 2 of one group, in plain loops."""
    rewards, other, ids = rewards_of(2), sampler().model, [(0, 2), (1, 1)]
    run = make_run("rloo", 2, level, NO_CAP, **RLOO)
    rollouts = [trace(run, z, "prior", i, other, rewards[z]) for i, z in enumerate(ids)]
    ratios = []
    for rollout in rollouts:
        logs = log_probs_of(run.models["policy"].model, rollout.request.prompt_ids, rollout.trace_ids).detach()
        own = [math.exp(float(a) - b) for a, b in zip(logs, rollout.log_probs, strict=True)]
        ratios.append([math.prod(own)] * 2 if level == "sequence" else own)
    cap = (min(map(min, ratios)) + max(map(max, ratios))) / 2  # some are held back and some are not
    found = step_gradient(make_run("rloo", 2, level, cap, **RLOO), rollouts)
    wanted = torch.zeros(())
    for rollout, row, sign in zip(rollouts, ratios, (1, -1), strict=True):
        advantage = sign * (rewards[ids[0]] - rewards[ids[1]])
        logs = log_probs_of(run.models["policy"].model, rollout.request.prompt_ids, rollout.trace_ids)
        wanted = wanted - sum(min(r, cap) * advantage * log for r, log in zip(row, logs, strict=True)) / 2
    assert world.relative(found, world.gradient_of(run, wanted)) < 1e-9


def test_the_metrics_of_a_step_are_those_of_plain_loops() -> None:
    run, rewards, other, cap = make_run("rloo", 2, "token", 1.1, **RLOO), rewards_of(2), sampler().model, 1.1
    rollouts = [trace(run, z, "prior", i, other, rewards[z]) for i, z in enumerate([(0, 2), (1, 1)])]
    run.generator = Scripted(rollouts)
    gaps = [
        float(a) - b
        for r in rollouts
        for a, b in zip(
            log_probs_of(run.models["policy"].model, r.request.prompt_ids, r.trace_ids).detach(),
            r.log_probs,
            strict=True,
        )
    ]
    metrics = take_step(run).metrics
    assert metrics["sampler/gap_mean"] == pytest.approx(sum(map(abs, gaps)) / 4, rel=1e-9)
    assert metrics["sampler/gap_max"] == pytest.approx(max(map(abs, gaps)), rel=1e-9)
    assert metrics["sampler/kl"] == pytest.approx(sum(math.exp(g) - 1 - g for g in gaps) / 4, rel=1e-9)
    assert metrics["sampler/truncated_share"] == sum(math.exp(g) > cap for g in gaps) / 4 > 0


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", ["covrl", "grpo", "verifree", "jepo", "rover", "rationalise"])
def test_a_sampler_with_the_trainers_own_log_probs_changes_no_bit(name: str, level: str) -> None:
    runs = [make_run(name, 2, chosen, 2.0) for chosen in (level, "off")]
    run = runs[0]
    plan = run.algorithm.plan(world.PROBLEM, [], Draw(0, 0))
    ids = [(0, 1, 2, 1, 2), (1, 2, 0, 0, 2)] if run.algorithm.samples == "response" else [(0, 1, 2), (1, 0, 2)]
    drawn = [
        replace(world.rollout(run, z, request.source, appended=False, index=i), reward=float(i))
        for i, (z, request) in enumerate(zip(ids, plan, strict=True))
    ]
    run.generator = Scripted(drawn)
    (scored,) = score_groups(run, [Group(world.PROBLEM, tuple(drawn))])
    known = [
        s.values.get(SAMPLED_FROM, s.values.get(("trace", r.source))) for r, s in zip(drawn, scored.scores, strict=True)
    ]
    exact = [replace(r, log_probs=tuple(k.tolist())) for r, k in zip(drawn, known, strict=True) if k is not None]
    assert len(exact) == 2
    assert torch.equal(step_gradient(runs[0], exact), step_gradient(runs[1], exact))


def test_the_trainers_own_engine_is_never_corrected() -> None:
    """Whatever the log-probs that it reports: rounding must not make noise."""
    rewards, other = rewards_of(2), sampler().model
    found = []
    for level in ("token", "off"):
        run = make_run("rloo", 2, level, 1.1, **RLOO)
        rollouts = [trace(run, z, "prior", i, other, rewards[z]) for i, z in enumerate([(0, 2), (1, 1)])]
        found.append(step_gradient(run, rollouts, of_trainer=True))
    assert torch.equal(*found)


def test_a_method_that_does_not_read_the_prompt_it_samples_from_has_its_traces_read() -> None:
    """``rationalise`` trains traces of the posterior prompt under the prior prompt."""
    run = make_run("rationalise", 2, "token", 2.0)
    drawn = [world.rollout(run, z, "posterior", appended=False, index=i) for i, z in enumerate([(0, 2), (1, 0, 2)])]
    run.generator = Scripted(drawn)
    (scored,) = score_groups(run, [Group(world.PROBLEM, tuple(drawn))])
    for rollout, scores in zip(drawn, scored.scores, strict=True):
        plain = world.plain_log_probs(run, rollout.request.prompt_ids, rollout.trace_ids)
        assert torch.allclose(scores.values[SAMPLED_FROM], plain, atol=1e-12)
        assert scores.tokens > len(rollout.request.prompt_ids) + len(rollout.trace_ids)
    run.generator = Scripted(drawn, of_trainer=True)
    (scored,) = score_groups(run, [Group(world.PROBLEM, tuple(drawn))])
    assert all(SAMPLED_FROM not in s.values for s in scored.scores)


def test_truncated_importance_of_known_numbers() -> None:
    trainer, drawn = torch.tensor([0.5, 0.2, 0.6]).log(), torch.tensor([0.25, 0.4, 0.1]).log()
    assert truncated_importance(trainer, drawn, 3.0).tolist() == pytest.approx([2.0, 0.5, 3.0])
    assert truncated_importance(trainer, drawn, 10.0, "sequence").tolist() == pytest.approx([6.0])
    assert truncated_importance(trainer, drawn, 2.0, "sequence").tolist() == pytest.approx([2.0])


def test_a_sampler_log_prob_that_is_no_number_ends_the_step() -> None:
    run = make_run("rloo", 2, "token", 2.0, **RLOO)
    drawn = [trace(run, z, "prior", i, sampler().model, float(i)) for i, z in enumerate([(0, 2), (1, 1)])]
    run.generator = Scripted([replace(drawn[0], log_probs=(-0.5, math.nan)), drawn[1]])
    with pytest.raises(Exception, match="the policy weight is nan at"):
        take_step(run)
