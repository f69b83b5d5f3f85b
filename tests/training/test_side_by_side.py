"""Passes of two threads: the bits of one pass after the other, in every order of events, and errors of the earliest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training.test_step import credited, gradient, make_run

from covrl.distributed.world import World
from covrl.errors import RunInterruptedError
from covrl.models.compute import compute_in_bfloat16
from covrl.models.model import LanguageModel, Paths
from covrl.models.text import trunk
from covrl.records import Credit, Row, ScoredGroup, Scores
from covrl.scoring import pack
from covrl.scoring.pack import PassLimits, Unit, even_packs, even_shares, flat_tokens
from covrl.training.gradient import Gradient, add_gradient
from covrl.training.reading_plan import reading_plan
from covrl.training.run import Run
from covrl.training.side_by_side import Turns, workers


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(pack, "LEAST", 1)  # the passes of tiny models are parted too
    yield
    torch.set_num_threads(before)


def shared_run(method: str) -> Run:
    """With the paths of a model that was proved."""
    run = make_run("llama", "float32", name=method)
    run.models["policy"].paths = Paths()
    return run


def sampled(run: Run) -> tuple[list[ScoredGroup], list[list[Credit]]]:
    """Rollouts and their credit, for which one thread is enough."""
    torch.set_num_threads(1)
    found = credited(run)
    torch.set_num_threads(2)
    return found


def one_after_the_other(self: Turns, passes: Sequence[Callable[[], None]], sizes: Sequence[int], most: int) -> None:
    del sizes, most
    torch.set_num_threads(1)
    for each in passes:
        each()
    torch.set_num_threads(2)


@pytest.mark.parametrize(("tokens", "dtype"), [(150, "float32"), (400, "float32"), (150, "mixed")])
def test_the_bits_are_those_of_one_pass_after_the_other(
    monkeypatch: pytest.MonkeyPatch, two_threads: None, tokens: int, dtype: str
) -> None:
    """In ``mixed`` too, where threads share autocast's casts of the weights."""
    run = shared_run("covrl")
    if dtype == "mixed":
        run.models["policy"].compute_dtype = torch.bfloat16
        compute_in_bfloat16(run.models["policy"].model)
    groups, credits = sampled(run)
    limits = PassLimits(tokens, 1 << 20)
    ran = []
    inside = Turns.run

    def counted(self: Turns, passes: Sequence[Callable[[], None]], sizes: Sequence[int], most: int) -> None:
        ran.append(len(passes))
        inside(self, passes, sizes, most)

    monkeypatch.setattr(Turns, "run", counted)
    found = [gradient(run, limits, groups, credits) for _ in range(3)]
    assert min(ran) > 2
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(Turns, "run", one_after_the_other)
    assert all(torch.equal(one, gradient(run, limits, groups, credits)) for one in found)
    torch.set_num_threads(1)
    whole = gradient(run, PassLimits(1 << 20, 1 << 30), groups, credits)
    assert float((found[0] - whole).norm() / whole.norm()) < (1e-5 if dtype == "float32" else 0.05)


def test_groups_that_are_credited_in_a_pass_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    run = shared_run("covrl")
    groups, _ = sampled(run)
    plain = [replace(g, scores=tuple(Scores({}) for _ in g.rollouts)) for g in groups]
    plan = reading_plan(run.algorithm, on_policy=True)
    assert plan.in_pass

    def credit(some: Sequence[ScoredGroup]) -> list[list[Credit]]:
        return run.algorithm.credit(list(some))

    def made() -> tuple[torch.Tensor, Gradient]:
        run.forget_gradient()
        result = add_gradient(run.algorithm, run.models, plain, credit, PassLimits(700, 1 << 20), plan)
        return torch.cat([p.grad.flatten() for p in run.parameters if p.grad is not None]), result

    (one, a), (two, b) = made(), made()
    monkeypatch.setattr(Turns, "run", one_after_the_other)
    three, c = made()
    assert a.passes > 1
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    assert a.losses == b.losses == c.losses


def test_sums_are_in_the_order_of_passes_whichever_is_faster() -> None:
    """1e8 + 1 − 1e8 is 0 in float32, and 1 in another order."""
    parameter, never = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    values = [1e8, 1.0, -1e8, 5.0, 0.25]
    turns, order = Turns(), []

    def one(number: int) -> None:
        time.sleep(0.02 * (number % 2 == 0))
        with turns.turn("said"):
            order.append(number)
        if number != 3:
            (parameter * values[number]).sum().backward()

    with turns.adding([parameter, never]):
        turns.run([lambda i=i: one(i) for i in range(5)], [1] * 5, 2)
    assert order == [0, 1, 2, 3, 4]
    expected = torch.zeros(1)
    for i in (0, 1, 2, 4):
        expected += values[i]
    assert torch.equal(parameter.grad, expected)
    assert not parameter._backward_hooks


def test_passes_under_way_have_no_more_tokens_than_one_may_have() -> None:
    turns, held, most = Turns(), [], []
    lock = threading.Lock()
    sizes = [40, 70, 30, 30, 200, 10]

    def one(size: int) -> None:
        with lock:
            held.append(size)
            most.append(sum(held))
        time.sleep(0.01)
        with lock:
            held.remove(size)

    turns.run([lambda s=s: one(s) for s in sizes], sizes, 100)
    assert max(m for m in most if m < 200) <= 100
    assert max(most) == 200


@pytest.mark.parametrize("first", [1, 2])
def test_the_error_of_the_earliest_pass_is_raised_and_later_passes_are_left(first: int) -> None:
    turns, done = Turns(), []

    def one(number: int) -> None:
        time.sleep(0.02 * (number == first))
        if number in (first, first + 1):
            raise ValueError(str(number))
        with turns.turn("between"):
            done.append(number)

    threads = threading.active_count()
    with pytest.raises(ValueError, match=str(first)):
        turns.run([lambda i=i: one(i) for i in range(8)], [1] * 8, 2)
    assert done == list(range(first))
    assert threading.active_count() == threads


def test_an_error_between_passes_ends_the_gradient(two_threads: None) -> None:
    run = shared_run("covrl")
    groups, credits = sampled(run)
    calls = []

    def between(error: Exception | None) -> None:
        calls.append(error)
        if len(calls) == 2:
            raise RunInterruptedError("asked")

    with pytest.raises(RunInterruptedError):
        gradient(run, PassLimits(150, 1 << 20), groups, credits, between=between)
    assert calls == [None, None]
    assert not any(p._backward_hooks for p in run.parameters)


def test_what_cannot_go_side_by_side_goes_one_after_the_other(two_threads: None) -> None:
    model = shared_run("grpo").models["policy"]
    assert workers([model], World()) == 2
    torch.set_num_threads(1)
    assert workers([model], World()) == 1
    torch.set_num_threads(2)

    class Two(World):
        size = 2

    assert workers([model], Two()) == 1
    assert workers([make_run("llama", "float32").models["policy"]], World()) == 1  # prompts are not shared
    other = LanguageModel(model.model)  # of the same weights, as a reference that is the policy without its adapter
    other.paths = Paths()
    assert workers([model, other], World()) == 1
    model.model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert workers([model], World()) == 1
    compiled = shared_run("grpo").models["policy"]
    trunk(compiled.model).forward = lambda *_, **__: None  # as compile_trunk() puts one in its place
    assert workers([compiled], World()) == 1


@given(st.lists(st.integers(1, 900), min_size=1, max_size=12), st.integers(100, 1200))
def test_shares_hold_every_item_once_and_no_more_than_they_may(sizes: list[int], most: int) -> None:
    shares = even_shares(sizes, most, 2)
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    assert all(len(share) == 1 or sum(sizes[i] for i in share) <= most for share in shares)


def test_packs_part_no_prompt_that_fits_and_are_about_equal() -> None:
    units = [Unit(8 * p + i, {"prior": Row((p,) * 58 + tuple(range(80)), {}, 58)}) for p in range(8) for i in range(8)]
    packs = even_packs(units, 1024, 2)
    assert [flat_tokens(pack) for pack in packs] == [58 + 8 * 80] * 8
    assert sorted(u.index for pack in packs for u in pack) == list(range(64))
    parted = even_packs(units[:8], 1024, 2)
    assert [len(pack) for pack in parted] == [4, 4]
    assert len(even_packs(units[:3], 1024, 2)) == 1
