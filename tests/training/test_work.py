"""How much work a step is: forwards, tokens that go through the model, the largest logits. Counts, not times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from models import prove, prove_engine
from torch.utils._python_dispatch import TorchDispatchMode
from training.test_step import make_run

from covrl.generation import engine
from covrl.generation.base import Draw
from covrl.scoring.pack import PassLimits
from covrl.training import loop
from covrl.training.gradient import add_gradient
from covrl.training.reading_plan import reading_plan
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.step import take_step


class Forward(NamedTuple):
    """One forward of the trunk: whether it was with gradients, and its tokens, padding included."""

    learns: bool
    tokens: int


def ready_run(method: str, **algorithm: Any) -> Run:
    """A run whose model has proved its fast paths, as a loaded one has; every response has some weight."""
    run = make_run("llama", "float32", name=method, **algorithm)
    assert not prove(run.models["policy"])
    assert not prove_engine(run.generator)  # ty: ignore[unresolved-attribute]
    run.reward = (lambda problem, text: float(len(text) % 7 + text.count("1"))) if run.algorithm.verified else None
    training = run.config.training.model_copy(update={"stream_norms_every": 0})
    guards = run.config.guards.model_copy(update={"publish_check_every": 0})
    report = run.config.report.model_copy(update={"thoughts_every": 0})
    run.config = run.config.model_copy(update={"training": training, "guards": guards, "report": report})
    return run


@contextmanager
def forwards(run: Run) -> Iterator[list[Forward]]:
    found: list[Forward] = []

    def see(_: Any, args: Any, named: dict[str, Any]) -> None:
        ids = named["input_ids"] if "input_ids" in named else args[0]
        found.append(Forward(torch.is_grad_enabled(), ids.numel()))

    hook = run.models["policy"].model.base_model.register_forward_pre_hook(see, with_kwargs=True)
    yield found
    hook.remove()


@pytest.mark.parametrize("method", ["grpo", "covrl", "verifree"])
def test_a_step_reads_each_prompt_and_each_token_once_beside_sampling(method: str) -> None:
    """One forward, with gradients, without padding; none to score. Prompts count once for each group."""
    run = ready_run(method)
    problems = run.source.take(5)
    run.source.load_state_dict(make_run(name=method).source.state_dict())
    groups = sample(run, problems, Draw(run.config.training.seed, 0))
    with forwards(run) as sampling:
        sample(run, problems, Draw(run.config.training.seed, 0))
    with forwards(run) as found:
        next(loop.steps(run))
    learning = [f for f in found if f.learns]
    assert len(learning) == 1
    assert len(found) == len(sampling) + 1
    kept = [g for g in groups if method != "covrl" or any(r.valid for r in g.rollouts)]
    needed = 0
    for group in kept:
        rows = [run.prompts.response_row if method == "grpo" else run.prompts.prior_row]
        rows += [run.prompts.posterior_row] if method == "covrl" else []
        for row in rows:
            made = [row(group.problem, rollout) for rollout in group.rollouts]
            needed += made[0].prompt + sum(len(r.ids) - r.prompt for r in made)
    assert learning[0].tokens <= needed
    assert learning[0].tokens == needed or method == "grpo"  # a response as good as its group's mean is left out
    assert learning[0].tokens > 0.5 * needed


def test_sampling_reads_each_prompt_once_and_few_tokens_of_rows_that_ended() -> None:
    run = ready_run("covrl")
    problems = run.source.take(5)
    with forwards(run) as found:
        groups = sample(run, problems, Draw(0, 0))
    rollouts = [r for g in groups for r in g.rollouts]
    prompts = {r.request.prompt_ids for r in rollouts}
    assert found[0].tokens == sum(map(len, prompts))
    assert len(found) <= max(len(r.trace_ids) for r in rollouts)
    fed = sum(f.tokens for f in found[1:])
    needed = sum(len(r.trace_ids) - 1 for r in rollouts)
    assert needed <= fed <= needed / 0.75


class LargestOver(TorchDispatchMode):
    """Records the bytes of the largest result whose last axis is the vocabulary, the output layer's weights apart.

    With a ``dtype``, of those alone.
    """

    def __init__(self, vocabulary: int, hidden: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.vocabulary, self.hidden, self.dtype, self.bytes = vocabulary, hidden, dtype, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            if (
                isinstance(item, torch.Tensor)
                and item.ndim > 1
                and item.shape[-1] == self.vocabulary
                and item.shape[-2] != self.hidden
                and self.dtype in (None, item.dtype)
            ):
                self.bytes = max(self.bytes, item.numel() * item.element_size())
        return out


@pytest.mark.parametrize("method", ["grpo", "covrl"])
def test_logits_of_a_training_pass_stay_below_the_bound(method: str) -> None:
    run = ready_run(method)
    vocabulary = int(run.models["policy"].model.config.vocab_size)
    groups = run.algorithm.admit(score_groups(run, sample(run, run.source.take(5), Draw(0, 0)))).kept
    credits = run.algorithm.credit(groups)
    bound = 4 * vocabulary * 11
    run.limits = PassLimits(run.limits.tokens, bound)
    with LargestOver(vocabulary, int(run.models["policy"].model.config.hidden_size)) as seen:
        add_gradient(run.algorithm, run.models, groups, credits, run.limits, reading_plan(run.algorithm, False))
    assert 0 < seen.bytes <= bound


def test_what_tokens_are_drawn_from_stays_below_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, whatever the vocabulary; the model's own logits have a row a response."""
    run = ready_run("grpo")
    config = run.models["policy"].model.config
    bound = 8 * config.vocab_size * 3
    monkeypatch.setattr(engine, "DRAWN_BYTES", bound)
    with LargestOver(config.vocab_size, config.hidden_size, torch.float64) as seen:
        rows = len(sample(run, run.source.take(5), Draw(0, 0))) * run.config.training.rollouts_per_problem
    assert 0 < seen.bytes <= bound < 8 * config.vocab_size * rows


def test_what_is_read_for_the_report_alone_is_little_work() -> None:
    """Over five steps: looks at thoughts and foils are at most 3 % of the tokens, a trained one counted thrice."""
    spent = []
    for every in (0, 5):
        run = ready_run("covrl")
        training = run.config.training.model_copy(update={"steps": 100, "rollouts_per_problem": 8})
        report = run.config.report.model_copy(update={"thoughts_every": every})
        run.config = run.config.model_copy(update={"training": training, "report": report})
        run.algorithm.group_size = 8  # ty: ignore[unresolved-attribute]
        run.done = 1  # the first step has looks of its own
        with forwards(run) as found:
            for _ in range(5):
                metrics = take_step(run).metrics
                assert ("hint/blind_share" in metrics) == ("thought/gain" in metrics) == (run.done == every)
        spent.append(sum(f.tokens * (3 if f.learns else 1) for f in found))
    without, with_looks = spent
    assert without < with_looks < 1.03 * without
