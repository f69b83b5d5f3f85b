"""A world small enough to enumerate: three tokens, short traces, a GPT-2 in float64.

GPT-2 because its norms and positions stay in the model's dtype; Llama-like models round to float32 inside.
Enumerated traces become ordinary Rollouts and pass the production path. The reference side (:func:`plain_reading`)
runs one row at a time through the model's own forward, without packs, chunks or any code of covrl's scoring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import Setup
from covrl.config import RunConfig
from covrl.generation.base import Draw
from covrl.models.critic import Critic, HeadOnTrunk
from covrl.models.model import LanguageModel
from covrl.problems.source import ProblemSource
from covrl.prompts import Prompts
from covrl.records import Group, Problem, Request, Rollout
from covrl.training.gradient import Gradient, add_gradient
from covrl.training.reading_plan import reading_plan
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.step import take_step

A, B, CLOSE = 0, 1, 2
VOCABULARY = {"a": A, "b": B, ".": CLOSE}
PROBLEM = Problem(id="tiny", question="a", answer="b")
Batch = Sequence[tuple[Problem, Sequence[Rollout]]]


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel(VOCABULARY))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def tiny_model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    size = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 3}
    config = GPT2Config(**size, bos_token_id=None, eos_token_id=None, initializer_range=0.7)
    return GPT2LMHeadModel(config).double().eval()


def make_run(seed: int = 0, name: str = "covrl", group: int = 2, **settings: Any) -> Run:
    """A run with the tiny model and a method under ``settings``; models beside the policy have weights of their own."""
    config = RunConfig.model_validate(
        {
            "model": {"path": "unused", "dtype": "float64"},
            "prompts": {
                "user": "{question}",
                "prior_open": "",
                "posterior_open": "{hint}",
                "close": ".",
                "answer_prefix": "",
                "answer_suffix": ".",
            },
            "training": {"rollouts_per_problem": group, "problems_per_step": 1},
            "algorithm": {"name": name, **settings},
        }
    )
    prompts = Prompts(tokenizer(), config.prompts)
    algorithm = make_algorithm(config.algorithm, Setup(prompts, group))
    models = {"policy": LanguageModel(tiny_model(seed))}
    for i, spec in enumerate(algorithm.models):
        beside = LanguageModel(tiny_model(seed + 100 + i).requires_grad_(False))
        models[spec.name] = critic(models["policy"], beside, spec.on_trunk) if spec.trainable else beside
    return Run(config, algorithm, models, generator=None, prompts=prompts, source=ProblemSource([PROBLEM], 0))  # ty: ignore


def critic(policy: LanguageModel, beside: LanguageModel, on_trunk: bool) -> LanguageModel:
    """A value head with random weights, on the policy's trunk or on a model of its own."""
    made = HeadOnTrunk(policy) if on_trunk else Critic(beside)
    with torch.no_grad():
        for parameter in made.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=parameter.dtype))
    return made


def rollout(
    run: Run, ids: Sequence[int], source: str, appended: bool, problem: Problem = PROBLEM, index: int = 0
) -> Rollout:
    """A trace as the engine would return it: closed by its own last token, or appended, or cut at the limit.

    Where the method samples whole responses, the second closing token ends one.
    """
    requests = run.algorithm.plan(problem, [], Draw(0, 0))
    planned = next(r for r in requests if r.source == source)
    ends = 2 if run.algorithm.samples == "response" else 1
    closed = appended or (ids[-1] == CLOSE and ids.count(CLOSE) == ends)
    closing = "appended" if appended else "sampled" if closed else "none"
    text = "".join("ab."[i] for i in ids)
    request = Request(problem.id, index, planned.prompt_ids, source, trains=planned.trains)
    return Rollout(request, tuple(ids), (0.0,) * len(ids), "closed" if closed else "length", closing, text)


def stopping_traces(length: int) -> list[tuple[int, ...]]:
    """All traces that sampling can return: closed early, or cut at ``length``."""
    closed = [(*head, CLOSE) for n in range(length) for head in product((A, B), repeat=n)]
    return closed + list(product((A, B), repeat=length))


def responses(length: int) -> list[tuple[int, ...]]:
    """All whole responses that sampling can return: ended by the second closing token, or cut at ``length``."""
    every = [ids for n in range(1, length + 1) for ids in product(range(3), repeat=n)]
    ended = [ids for ids in every if ids[-1] == CLOSE and ids.count(CLOSE) == 2]
    return ended + [ids for ids in every if len(ids) == length and ids.count(CLOSE) < 2]


def fixed_traces(length: int) -> list[tuple[int, ...]]:
    """All sequences of one length; their closing tag is appended, so each of them has an answer."""
    return list(product(range(3), repeat=length))


@dataclass
class Reading:
    """What the reference side knows of one trace: ``[T]`` log p, log q and exact KL, ``[A]`` answer log-probs."""

    prior: Tensor
    posterior: Tensor
    kl: Tensor
    kl_detached: Tensor
    answer: Tensor | None

    def detached(self) -> Reading:
        answer = None if self.answer is None else self.answer.detach()
        kl = self.kl.detach()
        return Reading(self.prior.detach(), self.posterior.detach(), kl, kl, answer)


def plain_reading(run: Run, ids: Sequence[int], appended: bool) -> Reading:
    """One trace through the model's own forward, one row at a time."""
    model = run.models["policy"].model
    closed = appended or ids[-1] == CLOSE
    tail = ((CLOSE,) if appended else ()) + (B, CLOSE) if closed else ()
    p = torch.log_softmax(model(torch.tensor([[A, *ids, *tail]])).logits[0], -1)
    q = torch.log_softmax(model(torch.tensor([[A, B, *ids]])).logits[0], -1)
    steps = torch.arange(len(ids))
    targets = torch.tensor(ids)
    prior, posterior = p[:-1][steps], q[1:-1][steps]
    m = 0.5 * prior.exp() + 0.5 * posterior.exp()
    kl = (m * (m.log() - prior)).sum(-1)
    kl_detached = (m * (m.log() - prior.detach())).sum(-1)
    at = len(ids) + appended
    answer = torch.stack([p[at, B], p[at + 1, CLOSE]]) if closed else None
    return Reading(prior[steps, targets], posterior[steps, targets], kl, kl_detached, answer)


def plain_log_probs(run: Run, prompt: Sequence[int], ids: Sequence[int], model: str = "policy") -> Tensor:
    """``[n]`` log-probs of ``ids`` behind a prompt, one row through the model's own forward."""
    logits = run.models[model].model(torch.tensor([[*prompt, *ids]])).logits[0]
    logs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return logs.gather(-1, torch.tensor([[i] for i in ids]))[:, 0]


def production_gradient(
    run: Run, rollouts: Sequence[Rollout], drift: Tensor | None = None, problem: Problem = PROBLEM
) -> tuple[Tensor, Gradient]:
    """The gradient of one step on one group, through score, admit, credit, pack, loss and backward.

    With ``drift`` the weights move after scoring, so that new and old log-probs differ.
    """
    for parameter in run.parameters:
        parameter.grad = None
    kept = run.algorithm.admit(score_groups(run, [Group(problem, tuple(rollouts))])).kept
    credits = run.algorithm.credit(kept)
    before = get_weights(run)
    if drift is not None:
        set_weights(run, before + drift)
    report = add_gradient(
        run.algorithm, run.models, kept, credits, run.limits, reading_plan(run.algorithm, on_policy=False)
    )
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in run.parameters]
    set_weights(run, before)
    flat = torch.cat([g.flatten() for g in grads])
    if drift is None and kept:
        check_on_policy_gradient(run, [(problem, rollouts)], flat)
    return flat, report


def gradient_of_groups(run: Run, batch: Batch) -> Tensor | None:
    """The production gradient of one step on several groups; None if none of them is admitted."""
    for parameter in run.parameters:
        parameter.grad = None
    kept = run.algorithm.admit(score_groups(run, [Group(problem, tuple(rollouts)) for problem, rollouts in batch])).kept
    add_gradient(
        run.algorithm,
        run.models,
        kept,
        run.algorithm.credit(kept),
        run.limits,
        reading_plan(run.algorithm, on_policy=False),
    )
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in run.parameters])
    if kept:
        check_on_policy_gradient(run, batch, flat)
    return flat if kept else None


def gradient_of_step(run: Run) -> Tensor:
    """The gradient that a whole step of the loop hands to the optimizer; zeros where it makes no update."""
    taken = [torch.zeros_like(get_weights(run))]

    def take(*_: object) -> None:
        taken.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in run.parameters]))

    hook = run.optimizers["policy"].register_step_pre_hook(take)
    take_step(run)
    hook.remove()
    return taken[-1]


def check_on_policy_gradient(run: Run, batch: Batch, expected: Tensor) -> None:
    """A first update that reads old log-probs off its training forward, or credits in it, has the same gradient."""
    plan = reading_plan(run.algorithm, on_policy=True)
    if plan == reading_plan(run.algorithm, on_policy=False):
        return
    for parameter in run.parameters:
        parameter.grad = None
    scored = score_groups(run, [Group(problem, tuple(rows)) for problem, rows in batch], plan.before)
    groups = run.algorithm.admit(scored).kept
    credits = run.algorithm.credit if plan.in_pass else run.algorithm.credit(groups)
    add_gradient(run.algorithm, run.models, groups, credits, run.limits, plan)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in run.parameters])
    assert torch.allclose(flat, expected, atol=1e-12, rtol=1e-10)


def get_weights(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.parameters])


def set_weights(run: Run, flat: Tensor) -> None:
    torch.nn.utils.vector_to_parameters(flat, run.parameters)


def gradient_of(run: Run, value: Tensor) -> Tensor:
    parts = torch.autograd.grad(value, run.parameters, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for g, p in zip(parts, run.parameters, strict=True)
        ]
    )


def slope_at_zero(value: Callable[[float], float], step: float = 0.002) -> float:
    """The slope of ``value`` at 0 by central differences at three widths, extrapolated to the sixth order."""
    slopes = [(value(w) - value(-w)) / (2 * w) for w in (step, step / 2, step / 4)]
    a, b = (4 * slopes[1] - slopes[0]) / 3, (4 * slopes[2] - slopes[1]) / 3
    return (16 * b - a) / 15


def difference(run: Run, value: Callable[[], Tensor], direction: Tensor) -> float:
    """The slope of ``value`` in the weights along a unit direction, without autograd; good to 1e-9."""
    weights = get_weights(run)

    def at(width: float) -> float:
        set_weights(run, weights + width * direction)
        with torch.no_grad():
            return float(value())

    found = slope_at_zero(at)
    set_weights(run, weights)
    return found


def check(run: Run, found: Tensor, value: Callable[[], Tensor]) -> None:
    """``found`` is ∇ value, to 1e-9 of its norm: as a whole by autograd, along two directions by differences."""
    size = float(found.norm())
    assert size > 1e-3
    assert relative(found, gradient_of(run, value())) < 1e-9
    torch.manual_seed(5)
    some = torch.randn_like(found)
    for direction in (found / size, some / some.norm()):
        assert abs(difference(run, value, direction) - float(found @ direction)) < 1e-9 * size


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((found - expected).norm() / expected.norm())
