"""The reward watch: its limits, how often it warns where nothing parts, and that it does where something does."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from statistics import NormalDist

import pytest

from covrl.api import build
from covrl.guards.reward_watch import GAIN_LEVEL, Look, Paid, RewardWatch, blindness, compare, gain_at_most
from covrl.quickstart.run import load_config
from covrl.records import Problem
from covrl.training import loop

Curve = Callable[[int], float]


def marks(right: int, count: int = 256) -> str:
    return "1" * right + "0" * (count - right)


def test_the_limit_of_a_gain_by_hand() -> None:
    z = NormalDist().inv_cdf(0.99)
    assert gain_at_most("0" * 256, "0" * 256, 0.99) == pytest.approx(z * z / (256 + z * z))  # Wilson's, of 0 of 256
    assert gain_at_most("01" * 50, "10" * 50, 0.99) > 0.1  # many changed, none on balance
    assert gain_at_most(marks(100), marks(60), 0.999) < 0 < gain_at_most(marks(100), marks(95), 0.999)


@pytest.mark.parametrize(("won", "lost", "count"), [(0.0, 0.02, 128), (0.05, 0.05, 256), (0.1, 0.02, 256)])
def test_the_limit_holds_as_often_as_it_says(won: float, lost: float, count: int) -> None:
    rng = random.Random(f"{won}/{lost}")
    held = 0
    for _ in range(1500):
        pairs = rng.choices([("0", "1"), ("1", "0"), ("0", "0")], [won, lost, 1 - won - lost], k=count)
        held += gain_at_most("".join(a for a, _ in pairs), "".join(b for _, b in pairs), GAIN_LEVEL) >= won - lost
    assert held / 1500 >= GAIN_LEVEL - 0.008  # three standard errors of the share


def paid(low: float, high: float, steps: int = 30, spread: float = 1.0) -> list[Paid]:
    """A reward that goes from low to high in a line, with a little noise."""
    return [Paid(i + 1, low + (high - low) * i / (steps - 1) + 0.01 * (-1) ** i, spread) for i in range(steps)]


@pytest.mark.parametrize(
    ("before", "now", "rise", "parted"),
    [
        (10, 11, 3.0, True),  # the reward rises, accuracy stays
        (10, 40, 3.0, False),  # both rise
        (10, 10, 0.5, False),  # accuracy stays, but less than a deviation was gained
        (10, 10, -3.0, False),
        (200, 150, 0.5, True),  # accuracy falls: any rise will do
        (200, 150, -0.5, False),
        (254, 254, 3.0, False),  # nothing is left to gain
        (254, 200, 0.5, True),
    ],
)
def test_when_reward_and_accuracy_part(before: int, now: int, rise: float, parted: bool) -> None:
    found = compare(Look(0, marks(before)), Look(30, marks(now)), paid(0.0, 1.5 * rise))
    assert found is not None
    assert found.rise == pytest.approx(rise, rel=0.1)
    assert found.parted is parted


def test_a_reward_of_verdicts_has_to_rise_by_more_than_accuracy_can_have_gained() -> None:
    looks = Look(0, marks(10)), Look(30, marks(14))
    small, large = paid(0.04, 0.1, spread=0.03), paid(0.04, 0.6, spread=0.03)
    assert compare(*looks, small).parted  # ty: ignore[unresolved-attribute]
    assert not compare(*looks, small, shares=True).parted  # ty: ignore[unresolved-attribute]
    assert compare(*looks, large, shares=True).parted  # ty: ignore[unresolved-attribute]


def test_too_few_steps_or_other_problems_are_not_compared() -> None:
    assert compare(Look(0, marks(9)), Look(14, marks(9)), paid(0, 9)) is None
    assert compare(Look(0, marks(9)), Look(30, marks(9, 100)), paid(0, 9)) is None


def walk(
    seed: int, accuracy: Curve, reward: Curve, spread: Curve, steps: int = 300, every: int = 10, shares: bool = False
) -> list[str]:
    """The warnings of a made-up run: rewards with noise, and 128 problems of very different difficulty."""
    rng = random.Random(seed)
    watch = RewardWatch()
    ability = [rng.gauss(0, 1.5) for _ in range(128)]
    said: list[str] = []
    for step in range(1, steps + 1):
        metrics = {"reward/prior": rng.gauss(reward(step), 0.1 * spread(step)), "reward/group_std": spread(step)}
        seen = ""
        if step % every == 0 or step == 1:
            share = min(max(accuracy(step), 0.005), 0.995)
            middle = 1.35 * math.log(share / (1 - share))
            seen = "".join("1" if rng.random() < 1 / (1 + math.exp(-middle - a)) else "0" for a in ability)
        said += watch.step(step, metrics, seen, shares)[1]
    return said


def sigmoid(step: float, middle: float, width: float) -> float:
    return 0.02 + 0.93 / (1 + math.exp(-(step - middle) / width))


HONEST: dict[str, tuple[Curve, Curve, Curve, bool]] = {
    "nothing moves": (lambda _: 0.5, lambda _: 0.0, lambda _: 1.0, False),
    "verdicts": (lambda s: sigmoid(s, 120, 30), lambda s: sigmoid(s, 120, 30), lambda _: 0.3, True),
    "likelihood": (lambda s: sigmoid(s, 120, 30), lambda s: -10 * (1 - sigmoid(s, 120, 30)), lambda _: 3.0, False),
    "accuracy 20 steps late": (
        lambda s: sigmoid(s - 20, 120, 30), lambda s: -10 * (1 - sigmoid(s, 120, 30)), lambda _: 3.0, False,
    ),
    "all right, likelihood still rises": (lambda _: 0.98, lambda s: -3 + s / 100, lambda _: 0.5, False),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_runs_are_not_warned_about(name: str) -> None:
    """One run in 12 at most: with a rate of 1 % a second one is a matter of 0.6 %, and the seeds are fixed."""
    accuracy, reward, spread, shares = HONEST[name]
    assert sum(bool(walk(seed, accuracy, reward, spread, shares=shares)) for seed in range(12)) <= 1


@pytest.mark.parametrize(
    ("accuracy", "reward", "shares"),
    [
        (lambda _: 0.02, lambda s: min(s / 50, 3), False),  # paid for something else from the start
        (lambda s: 0.5 - 0.3 * s / 300, lambda s: s / 100, False),  # and at the cost of accuracy
        (lambda _: 0.3, lambda s: 0.3 + 0.6 * min(s / 200, 1), True),  # a verifier that is farmed
        (lambda s: min(0.6 * s / 100, 0.6), lambda s: min(s / 50, 2) + max(s - 180, 0) / 40, False),  # learns, then not
    ],
)
def test_hacked_runs_are_warned_about(accuracy: Curve, reward: Curve, shares: bool) -> None:
    spread: Curve = (lambda _: 0.3) if shares else (lambda _: 1.0)
    warned = [walk(seed, accuracy, reward, spread, shares=shares) for seed in range(6)]
    assert sum(map(bool, warned)) >= 5
    assert all(text.startswith("reward and accuracy part: from step ") for said in warned for text in said)


def test_one_evaluation_alone_warns_of_nothing() -> None:
    watch = RewardWatch()
    said = []
    for step, right in ((1, 9), (20, 9), (40, 9), (60, 90), (80, 90)):
        for number in range(step - 19, step):
            watch.step(number, {"reward/prior": number / 10, "reward/group_std": 1.0})
        told, warnings = watch.step(step, {"reward/prior": step / 10, "reward/group_std": 1.0}, marks(right))
        said.append((told.get("watch/parted"), bool(warnings)))
    assert said == [(None, False), (1.0, False), (1.0, True), (0.0, False), (1.0, False)]


def test_what_it_remembers_goes_through_a_checkpoint() -> None:
    rng = random.Random(3)
    steps = [
        ({"reward/prior": rng.gauss(s / 20, 0.2), "reward/group_std": 1.0}, marks(9 + s % 3) if s % 5 == 0 else "")
        for s in range(80)
    ]
    whole, broken = RewardWatch(), RewardWatch()
    for number, (metrics, seen) in enumerate(steps):
        if number % 7 == 0:
            state, broken = broken.state_dict(), RewardWatch()
            broken.load_state_dict(json.loads(json.dumps(state)))
        assert whole.step(number, metrics, seen) == broken.step(number, metrics, seen)
    assert whole.state_dict() == broken.state_dict()
    assert whole.in_a_row > 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((10, 256, True), None),
        ((0, 256, True), "no evaluations"),
        ((10, 0, True), "no problems are held out"),
        ((10, 256, False), "nobody grades held-out answers"),
        ((10, 64, True), "64 held-out problems can never rule out a gain of 5%"),
    ],
)
def test_it_says_where_it_is_blind(settings: tuple[int, int, bool], said: str | None) -> None:
    found = blindness(*settings)
    assert found is None if said is None else found is not None and said in found


def by_length(problem: Problem, text: str) -> float:
    """A reward that can be had without a right answer."""
    return float(len(text))


def test_a_run_that_is_paid_for_length_is_warned_about() -> None:
    hacked = [
        "training.steps=24", "training.learning_rate=1e-3", "training.warmup_steps=0", "training.schedule=constant",
        "training.problems_per_step=12", "training.stream_norms_every=0", "evaluation.every=4",
        "evaluation.problems=128", "algorithm.name=grpo", "generation.max_trace_tokens=16",
    ]  # fmt: skip
    reports = list(loop.steps(build(load_config(hacked), reward=by_length)))
    (first, *_) = [r.step for r in reports if any(w.startswith("reward and accuracy part") for w in r.warnings)]
    assert first <= 24
    assert reports[-1].metrics["watch/parted"] == 1.0
    assert reports[-1].metrics["reward/prior"] > reports[0].metrics["reward/prior"] + 5
    assert reports[-1].metrics["eval/sampled"] < 0.1
