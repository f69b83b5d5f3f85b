"""Several reward functions: their spellings, their sum, and the one line that each fault ends a run with."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import covrl
from covrl.config import RewardConfig, RunConfig, check, override, read_settings, reward_assignments, to_toml
from covrl.errors import UserError
from covrl.records import Problem, Request, Rollout
from covrl.rewards.functions import RESERVED
from covrl.rewards.named import (
    NamedReward,
    as_named,
    as_reward,
    not_finite,
    reward_metrics_by_name,
    rewarded,
    values_of,
    weighted,
)

PAIRS = [
    (Problem(f"p{i // 2}", "?", "!"), Rollout(Request(f"p{i // 2}", i % 2, (), "prior"), (), (), "closed", "none", t))
    for i, t in enumerate(("a", "bb", "ccc", "dddd"))
]


def length(problem: Problem, text: str) -> float:
    return float(len(text))


def lengths(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


async def slow_length(problem: Problem, text: str) -> float:
    await asyncio.sleep(random.random() * 0.02)
    return float(len(text))


async def slow_lengths(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
    await asyncio.sleep(0.01)
    return lengths(problems, texts)


def share(work: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
    """Two processes, one after another."""
    return [*work(items[:1]), *work(items[1:])]


FORMS = {
    "plain": NamedReward("plain", length),
    "threads": NamedReward("threads", length, concurrency=3),
    "batched": NamedReward("batched", lengths, batched=True),
    "async": NamedReward("async", slow_length),
    "async batched": NamedReward("async-batched", slow_lengths, batched=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_each_rollout_its_own_value(form: str) -> None:
    reward = FORMS[form]
    assert values_of([reward], PAIRS) == [{reward.name: float(n)} for n in (1, 2, 3, 4)]
    assert values_of([reward], []) == []


@pytest.mark.parametrize("given_back", [list, tuple, np.array, torch.tensor, iter])
def test_a_batch_may_be_given_back_in_any_sequence(given_back: Callable[..., Any]) -> None:
    reward = NamedReward("b", lambda ps, ts: given_back([0.5] * len(ts)), batched=True)
    assert values_of([reward], PAIRS) == [{"b": 0.5}] * 4


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_the_reward_is_the_weighted_sum_of_all_in_the_order_of_rollouts(weights: list[float]) -> None:
    forms = list(FORMS.values())
    rewards = [NamedReward(f"r{i}", forms[i].function, w, forms[i].batched) for i, w in enumerate(weights)]
    for (before_p, before), (after_p, after) in zip(PAIRS, rewarded(rewards, PAIRS, None, share), strict=True):
        assert after_p is before_p
        assert after.rewards == {r.name: float(len(before.text)) for r in rewards}
        assert after.reward == pytest.approx(sum(weights) * len(before.text))
        assert after.correct is None, "a verdict is never made of a reward"
        assert (after.request, after.text) == (before.request, before.text)


def test_one_function_alone_gives_what_it_gave_before() -> None:
    for value in (0.1, -0.0, math.inf, 1e308):
        ((_, found),) = rewarded(lambda p, t, v=value: v, PAIRS[:1], None, share)
        assert found.reward == value
        assert dict(found.rewards) == {"lambda": value}
    ((_, nan),) = rewarded(lambda p, t: math.nan, PAIRS[:1], None, share)
    assert math.isnan(nan.reward or 0.0)


def test_the_metrics_are_means_under_each_name() -> None:
    found = [r for _, r in rewarded(as_named({"long": length, "half": (length, 0.5)}), PAIRS, None, share)]
    assert reward_metrics_by_name(found) == {"reward/long": 2.5, "reward/half": 2.5}
    assert reward_metrics_by_name([r for _, r in PAIRS]) == {}


def test_the_spellings_of_python() -> None:
    record = NamedReward("c", lengths, 2.0, batched=True)
    several = as_reward({"a": length, "b": (slow_length, 0.5), "c": record})
    assert isinstance(several, Sequence)
    assert [(r.name, r.weight, r.batched, r.awaited) for r in several] == [
        ("a", 1.0, False, False),
        ("b", 0.5, False, True),
        ("c", 2.0, True, False),
    ]
    assert as_reward([record]) == as_reward(record) == (record,)
    assert as_reward(length) is length
    assert as_reward(None) is None
    assert covrl.NamedReward is NamedReward


WRONG_SPELLINGS: list[tuple[Any, str]] = [
    ({}, "there is no function in it"),
    ([], "there is no function in it"),
    (5, "5 is no NamedReward; give a function, a dict such as"),
    ([length], "is no NamedReward; give a function"),
    ({"a": 5}, "reward a: 5 is no function"),
    ({"a b": length}, "reward a b: 'a b' is no name: it begins with a letter"),
    ({"prior": length}, "reward prior: the name 'prior' is taken: reward/prior is a metric of every run"),
    ({"a": (length, math.nan)}, "reward a: weight = nan: it must be a finite number"),
    ({"a": (length, "much")}, "reward a: weight = 'much': it must be a finite number"),
    ([NamedReward("a", length), NamedReward("a", length)], "reward a: the name comes twice"),
    ({"a": "no_such_module:f"}, "reward.a.function: cannot import 'no_such_module:f'"),
    ({"a": "math:pi"}, "reward.a.function: 'math:pi' is of type float, not a function"),
]


@pytest.mark.parametrize(("given", "said"), WRONG_SPELLINGS)
def test_a_wrong_spelling_is_told_in_one_line(given: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        as_reward(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"timeout_s": -1.0}, "timeout_s = -1.0: it must be seconds"),
        ({"timeout_s": math.inf}, "timeout_s = inf: it must be seconds"),
        ({"concurrency": 0}, "concurrency = 0: it must be at least 1"),
        ({"concurrency": 4, "batched": True}, "concurrency does nothing with batched"),
    ],
)
def test_a_wrong_limit_names_the_reward(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^reward r: {said}"):
        NamedReward("r", length, **setting)


def broken(problem: Problem, text: str) -> float:
    if len(text) > 2:
        raise KeyError("colour\nof money")
    return 1.0


def for_ccc(value: Any) -> Callable[[Problem, str], Any]:
    return lambda problem, text: value if text == "ccc" else 1.0


async def never(problem: Problem, text: str) -> float:
    if text == "ccc":
        await asyncio.Event().wait()
    return 1.0


def hangs(problem: Problem, text: str) -> float:
    if text == "ccc":
        time.sleep(30)
    return 1.0


async def hidden(problem: Problem, text: str) -> float:
    return 1.0


def batch_of(value: Any) -> Callable[[Sequence[Problem], Sequence[str]], Any]:
    return lambda problems, texts: value


def raises_in_batch(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
    raise ConnectionError("no route")


THIRD = "problem p1, rollout 0 (prior)"
BATCH = "the batch of 4 from problem p0, rollout 0 (prior) to problem p1, rollout 1 (prior)"
FAULTS: dict[str, tuple[NamedReward, str]] = {
    "raises": (NamedReward("r", broken), f"r (test_named:broken): {THIRD}: KeyError: 'colour\\nof money'"),
    "a text": (NamedReward("r", for_ccc("1")), f"{THIRD}: gave '1'; it must be a number"),
    "None": (NamedReward("r", for_ccc(None)), f"{THIRD}: gave None; it must be a number"),
    "a complex number": (NamedReward("r", for_ccc(1j)), f"{THIRD}: gave 1j; it must be a number"),
    "beyond floats": (NamedReward("r", for_ccc(10**400)), f"{THIRD}: gave 1000"),
    "beyond repr": (NamedReward("r", for_ccc(10**5000)), f"{THIRD}: gave a huge int; it must be a number"),
    "no async def": (NamedReward("r", lambda p, t: hidden(p, t)), "gave something to be awaited, but the"),
    "hangs": (NamedReward("r", hangs, timeout_s=0.2), f"{THIRD}: ran into its time limit of 0.2 s (timeout_s)"),
    "hangs in a thread": (NamedReward("r", hangs, timeout_s=0.2, concurrency=2), f"{THIRD}: ran into its time limit"),
    "never ends": (NamedReward("r", never, timeout_s=0.2), f"{THIRD}: ran into its time limit of 0.2 s"),
    "too few": (NamedReward("r", batch_of([1.0]), batched=True), f"{BATCH}: gave 1 values for 4 texts; it must give"),
    "too many": (NamedReward("r", batch_of([1.0] * 5), batched=True), f"{BATCH}: gave 5 values for 4 texts"),
    "one number": (NamedReward("r", batch_of(1.0), batched=True), f"{BATCH}: gave 1.0; it must give a list"),
    "a text for all": (NamedReward("r", batch_of("1111"), batched=True), f"{BATCH}: gave '1111'; it must"),
    "no dimensions": (NamedReward("r", batch_of(torch.tensor(1.0)), batched=True), f"{BATCH}: gave tensor(1.): "),
    "two dimensions": (NamedReward("r", batch_of(torch.ones(4, 2)), batched=True), "p0, rollout 0 (prior): gave"),
    "None among them": (NamedReward("r", batch_of([1, 1, None, 1]), batched=True), f"{THIRD}: gave None"),
    "raises for all": (NamedReward("r", raises_in_batch, batched=True), f"{BATCH}: ConnectionError: no route"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_with_function_problem_and_rollout(name: str) -> None:
    reward, said = FAULTS[name]
    with pytest.raises(UserError) as caught:
        rewarded([NamedReward("fine", length), reward], PAIRS, None, lambda work, items: work(items))
    line = str(caught.value)
    assert line.startswith("reward function r (test_named:")
    assert said in line
    assert "\n" not in line


def test_one_function_without_a_name_is_named_by_its_place() -> None:
    with pytest.raises(UserError, match=r"^reward function test_named:broken: problem p1, rollout 0"):
        rewarded(broken, PAIRS, None, share)


def test_values_that_are_not_finite_are_left_to_the_guards_with_their_function() -> None:
    rewards = as_named({"a": length, "b": (for_ccc(math.nan), 0.0)})
    found = [r for _, r in rewarded(rewards, PAIRS, None, share)]
    said = [not_finite(rewards, r) for r in found]
    assert said[0] is said[1] is said[3] is None
    assert said[2] == "the reward of b (test_named:for_ccc.<locals>.<lambda>) is nan"
    huge = as_named({"a": (lambda p, t: 1e308, 3.0)})
    ((_, sum_of_huge),) = rewarded(huge, PAIRS[:1], None, share)
    assert not_finite(huge, sum_of_huge) == "the sum of the rewards 3 x a is inf"


def test_a_method_of_verdicts_takes_a_sum_of_0_or_1_alone() -> None:
    halves = as_named({"a": (lambda p, t: 1.0, 0.5), "b": (lambda p, t: len(t) > 1, 0.5)})
    with pytest.raises(UserError) as caught:
        rewarded(halves, PAIRS, "it weighs verdicts", share)
    assert str(caught.value) == (
        "the sum of the rewards 0.5 x a + 0.5 x b: problem p0, rollout 0 (prior): gave 0.5; it must be 1 for right or "
        "0 for wrong, because it weighs verdicts"
    )
    assert [r.reward for _, r in rewarded(halves, PAIRS[1:], "it weighs verdicts", share)] == [1.0] * 3


def test_a_name_of_the_methods_own_traces_is_refused() -> None:
    hinted = [(p, Rollout(Request(p.id, 0, (), "hinted"), (), (), "closed", "none", r.text)) for p, r in PAIRS]
    with pytest.raises(UserError, match="reward hinted: reward/hinted is the metric of the method's traces"):
        rewarded(as_named({"hinted": length}), hinted, None, share)


MODEL: Mapping[str, Any] = {"model": {"path": "m"}}


def test_the_spellings_of_files(tmp_path: Any) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[[reward]]\nname = "b"\nfunction = "f"\nweight = 0.1\n[[reward]]\nname = "a"\nfunction = "g"\n')
    array = check(RunConfig, {**MODEL, **read_settings(file)})
    assert [(name, part.weight, part.timeout_s) for name, part in array.reward.items()] == [
        ("b", 0.1, 600),
        ("a", 1, 600),
    ]
    file.write_text('[reward.b]\nfunction = "f"\nweight = 0.1\n[reward.a]\nfunction = "g"\n')
    assert check(RunConfig, {**MODEL, **read_settings(file)}) == array
    file.write_text(to_toml(array))
    again = check(RunConfig, read_settings(file))
    assert again == array
    assert list(again.reward) == ["b", "a"]
    assert array.rewarded
    assert not check(RunConfig, MODEL).rewarded


def test_single_settings_of_a_reward_can_be_typed() -> None:
    table = {**MODEL, "reward": [{"name": "b", "weight": 0.1}]}
    changed = override(table, ["reward.b.weight=0.5", *reward_assignments(["b=my:f", "c=my:g"])])
    config = check(RunConfig, changed)
    assert config.reward["b"].function, config.reward["b"].weight == ("my:f", 0.5)
    assert config.reward["c"].function == "my:g"
    assert table["reward"] == [{"name": "b", "weight": 0.1}], "the file's own table is as it was"


WRONG_TABLES = [
    ([{"function": "f"}], 'setting reward: each table [[reward]] needs a name, such as name = "brevity"'),
    ([{"name": "b", "function": "f"}] * 2, "setting reward: the name 'b' comes twice"),
    ([{"name": "b"}], "setting reward.b.function is missing"),
    ([{"name": "b", "function": "f", "wieght": 1}], "unknown setting reward.b.wieght: did you mean reward.b.weight?"),
    ([{"name": "gap", "function": "f"}], "setting reward: the name 'gap' is taken"),
    ([{"name": "b", "function": "f", "timeout_s": -1}], "setting reward.b.timeout_s: Input should be"),
    ([{"name": "b", "function": "f", "batched": True, "concurrency": 3}], "concurrency does nothing with batched"),
]


@pytest.mark.parametrize(("tables", "said"), WRONG_TABLES)
def test_a_wrong_table_is_told_in_one_line(tables: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check(RunConfig, {**MODEL, "reward": tables})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_both_spellings_at_once_are_refused_with_the_new_one() -> None:
    both = {**MODEL, "rewards": {"function": "f"}, "reward": [{"name": "b", "function": "g"}]}
    with pytest.raises(UserError, match=r'as \[\[reward\]\] name = "…", function = "f"'):
        check(RunConfig, both)
    with pytest.raises(UserError, match="--reward NAME=a:b"):
        reward_assignments(["a:b", "c:d"])


@pytest.mark.parametrize(
    "text", ['[[reward]]\nname = "b"\nfunction = "os:system"\n', '[reward.b]\nfunction = "os:system"\n']
)
def test_a_file_names_no_code_in_either_spelling(tmp_path: Any, text: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"give it on the command line instead: --reward b=os:system$"):
        read_settings(file)


def test_the_page_says_what_is_accepted() -> None:
    """The TOML of docs/rewards.md is a run's, its table of keys has them all, and its names are those refused."""
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    block, steps = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert check(RunConfig, {**MODEL, **tomllib.loads(steps)}).steps.protocol == "vllm"
    config = check(RunConfig, {**MODEL, **tomllib.loads(block)})
    assert list(config.reward) == ["right", "brevity", "tone"]
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == {"name", *RewardConfig.model_fields}
    assert all(f"`{name}`" in page for name in RESERVED)


def test_the_weighted_sum_reads_each_by_its_name() -> None:
    assert weighted(as_named({"a": (length, 2.0), "b": (length, -1.0)}), {"b": 3.0, "a": 5.0}) == 7.0
