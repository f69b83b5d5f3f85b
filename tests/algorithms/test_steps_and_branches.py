"""VinePPO, CURE and Clip/Delta: what they ask for, golden values, and that they estimate what they claim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from exact import world
from models import character_tokenizer
from training.test_step import PROBLEMS, make_run

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import Setup
from covrl.algorithms.clip_delta import ClipDelta
from covrl.algorithms.cure import CURE
from covrl.algorithms.ppo import VALUE
from covrl.algorithms.vineppo import VinePPO
from covrl.config import RunConfig
from covrl.errors import UserError
from covrl.generation.base import Draw
from covrl.objectives.steps import clipped_scores, score_differences, step_advantages
from covrl.prompts import Prompts
from covrl.records import Credit, Observed, Output, Problem, Request, Rollout, ScoredGroup, Scores, Span
from covrl.training.rollouts import sample

P = Output("trace", "prior")
PROBLEM = Problem("p", "1+1=?", "2")


def method(name: str, group: int, **settings: Any) -> Any:
    """A method on a tokenizer with a token a character."""
    config = RunConfig.model_validate({"model": {"path": "unused"}, "algorithm": {"name": name, **settings}})
    return make_algorithm(config.algorithm, Setup(Prompts(character_tokenizer(), config.prompts), group, max_tokens=40))


def response(text: str, index: int = 0, reward: float | None = None, **request: Any) -> Rollout:
    """A whole response that spells ``text`` after its prefix."""
    ids = tuple(character_tokenizer().encode(text))
    asked = Request(PROBLEM.id, index, (1, 2), "prior", **request)
    before = character_tokenizer().decode(list(asked.prefix_ids))
    return Rollout(asked, ids, (0.0,) * len(ids), "closed", "sampled", before + text, reward=reward)


def scored(*rollouts: Rollout) -> ScoredGroup:
    """The rollouts with log-probs of −1 where they are read."""
    scores = [Scores({P: -torch.ones(len(r.trace_ids))} if r.request.scored else {}) for r in rollouts]
    return ScoredGroup(PROBLEM, rollouts, tuple(scores))


# --- numbers of steps ---------------------------------------------------------------------------------------------


def test_clip_and_delta_are_the_specs_golden_values() -> None:
    """Catalogue 3.11."""
    scores = [0.9, 0.7, 0.8, 0.95]
    assert clipped_scores(scores, 0.9) == pytest.approx([0, -0.2, -0.1, 0])
    delta = score_differences(scores)
    assert delta == pytest.approx([0.2, -0.1, -0.15, 0.95])
    assert [sum(delta[k:]) for k in range(4)] == pytest.approx(scores)
    assert score_differences(clipped_scores(scores, 0.9)) == pytest.approx([-0.2 + 0.4, -0.1, -0.1, 0])
    assert score_differences(scores, keep_last=False)[-1] == 0
    assert score_differences([]) == []


def test_advantages_of_steps_add_up_to_the_reward_minus_the_first_value() -> None:
    assert step_advantages([0.5, 0.75, 0.25], 1.0) == pytest.approx([0.25, -0.5, 0.75])
    assert step_advantages([], 1.0) == []


def test_refined_scores_cannot_be_farmed_by_more_steps() -> None:
    """The sum from the first step on: the raw sum grows with each step, clip and delta do not."""
    few, many = [0.8] * 3, [0.8] * 30
    totals = {}
    for refine in ("raw", "clip", "delta", "both"):
        made: ClipDelta = method("clip_delta", 2, refine=refine)
        totals[refine] = [sum(made.refined(scores)) for scores in (few, many)]
    assert totals["raw"][1] > totals["raw"][0]
    assert totals["clip"][1] < totals["clip"][0] < 0
    assert totals["delta"] == pytest.approx([0.8, 0.8])
    assert totals["both"] == pytest.approx([-0.1, -0.1])


# --- clip_delta ---------------------------------------------------------------------------------------------------


def test_a_steps_score_stands_at_its_last_token_beside_the_reward() -> None:
    made: ClipDelta = method("clip_delta", 2, refine="clip", step_weight=0.5)
    rollout = replace(response("abcdef", reward=1.0), steps=(Span(0, 2), Span(2, 6)), step_scores=(0.5, 0.7))
    scores = Scores({P: -torch.ones(6), VALUE: torch.zeros(6)})
    assert made.token_rewards(rollout, scores).tolist() == pytest.approx([0, -0.2, 0, 0, 0, 1 - 0.1])
    plain = replace(rollout, steps=(), step_scores=())
    assert made.token_rewards(plain, scores).tolist() == [0, 0, 0, 0, 0, 1]


# --- vineppo ------------------------------------------------------------------------------------------------------


def test_vineppo_asks_for_continuations_of_each_state_with_the_tokens_that_are_left() -> None:
    made: VinePPO = method("vineppo", 2, continuations=3)
    first = made.plan(PROBLEM, [], Draw(0, 0))
    assert len(first) == 2
    history = [response("ab\ncd\nef", 0), response("gh", 1)]
    asked = made.plan(PROBLEM, history, Draw(0, 0))
    assert [r.request.index for r in history] + [r.index for r in asked] == list(range(2 + 3 * 4))
    assert [(r.parent, len(r.prefix_ids)) for r in asked[::3]] == [(0, 0), (0, 3), (0, 6), (1, 0)]
    assert all(r.max_tokens == 40 - len(r.prefix_ids) and not r.trains and not r.scored for r in asked)
    assert all(r.prefix_ids == history[0].trace_ids[:3] for r in asked[3:6])
    assert made.plan(PROBLEM, [*history, *(response("x", r.index) for r in asked)], Draw(0, 0)) == []


def test_vineppo_gives_a_steps_tokens_the_difference_of_its_states_values() -> None:
    made: VinePPO = method("vineppo", 1, continuations=2, whiten=False)
    root = response("ab\ncde", 0, reward=1.0)
    half = root.trace_ids[:3]
    tries = [
        response("x", 1, 0.0, parent=0, trains=False, scored=False),
        response("x", 2, 1.0, parent=0, trains=False, scored=False),
        response("x", 3, 1.0, parent=0, trains=False, scored=False, prefix_ids=half),
        response("x", 4, 0.5, parent=0, trains=False, scored=False, prefix_ids=half),
    ]
    ((own, *others),) = made.credit([scored(root, *tries)])
    assert own.weights["policy"].tolist() == pytest.approx([0.25] * 3 + [0.25] * 3)  # 0.75 - 0.5, 1 - 0.75
    assert others == [Credit()] * len(tries)
    unknown = [replace(r, reward=None, correct="unknown") if r.request.prefix_ids else r for r in tries]
    assert made.credit([scored(root, *unknown)])[0][0].weights == {}


def test_vineppo_climbs_the_expected_reward_with_exact_values() -> None:
    """Continuations are fresh and their mean is exact in expectation, in which the advantages are linear."""
    run = world.make_run(name="vineppo", group=1, whiten=False, aggregation="sequence_sum")
    made = run.algorithm
    assert isinstance(made, VinePPO)
    made.spans = lambda rollout: [Span(i, i + 1) for i in range(len(rollout.trace_ids))]  # ty: ignore
    every = world.responses(4)
    worth = {ids: float(ids.count(world.B)) - 0.3 * len(ids) for ids in every}
    with torch.no_grad():
        chance = {ids: float(world.plain_log_probs(run, [world.A], ids).sum().exp()) for ids in every}

    def value(group: ScoredGroup, rollout: Rollout, start: int) -> float:
        ahead = [ids for ids in every if ids[:start] == rollout.trace_ids[:start]]
        return sum(chance[ids] * worth[ids] for ids in ahead) / sum(chance[ids] for ids in ahead)

    made.value = value  # ty: ignore
    total = torch.zeros_like(world.get_weights(run))
    expected = torch.zeros((), dtype=torch.float64)
    for ids in every:
        rollout = replace(world.rollout(run, ids, "prior", appended=False), reward=worth[ids])
        total += chance[ids] * world.production_gradient(run, [rollout])[0]
        expected = expected + world.plain_log_probs(run, [world.A], ids).sum().exp() * worth[ids]
    slope = world.gradient_of(run, -expected)
    assert float(slope.norm()) > 1e-3
    assert world.relative(total, slope) < 1e-9


# --- cure ---------------------------------------------------------------------------------------------------------


def observed(text: str, index: int, entropies: list[float], reward: float | None = None) -> Rollout:
    return replace(response(text, index, reward), observed=Observed(entropy=tuple(entropies)))


def test_cure_branches_before_a_token_of_high_entropy_and_drops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: CURE = method("cure", 4, candidates=2)
    monkeypatch.setattr(made, "_says_something", lambda token: token != character_tokenizer().encode(" ")[0])
    (root,) = made.plan(PROBLEM, [], Draw(0, 0))
    assert root.observe.entropy
    found = set()
    for step in range(40):
        history = [observed("abc def", 0, [9.0, 1.0, 0.5, 9.0, 2.0, 0.1, 0.2])]  # never the first, nor the space
        asked = made.plan(PROBLEM, history, Draw(0, step))
        (cut,) = {len(r.prefix_ids) for r in asked}
        assert [r.index for r in asked] == [1, 2, 3]
        assert all(r.prefix_ids == history[0].trace_ids[:cut] and r.parent == 0 for r in asked)
        assert all(r.max_tokens == 40 - cut and r.trains and not r.observe.anything for r in asked)
        found.add(cut)
    assert found == {1, 4}
    assert made.plan(PROBLEM, history, Draw(0, 3)) == made.plan(PROBLEM, history, Draw(0, 3))
    flat = [observed("a", 0, [1.0])]
    assert {len(r.prefix_ids) for r in made.plan(PROBLEM, flat, Draw(0, 0))} == {0}


def test_cures_second_stage_has_no_branches() -> None:
    made: CURE = method("cure", 4, branch_steps=10)
    assert len(made.plan(PROBLEM, [], Draw(0, 9))) == 1
    later = made.plan(PROBLEM, [], Draw(0, 10))
    assert len(later) == 4
    assert not any(r.observe.anything for r in later)


def test_cure_takes_whole_families() -> None:
    with pytest.raises(UserError, match="rollouts_per_problem = 6: cure has roots with 3 branches each"):
        method("cure", 6)


@pytest.mark.parametrize("baseline", ["group", "per_parent"])
def test_cures_baseline_is_over_the_group_or_a_family(baseline: str) -> None:
    made: CURE = method("cure", 4, branches=1, baseline=baseline, advantage="mean", resample=False)
    rewards = [1.0, 0.0, 1.0, 1.0]
    rollouts = [response("ab", i, r, parent=None if i < 2 else i - 2) for i, r in enumerate(rewards)]
    (row,) = made.credit([scored(*rollouts)])
    expected = {"group": [0.25, -0.75, 0.25, 0.25], "per_parent": [0.0, -0.5, 0.0, 0.5]}[baseline]
    assert [own.advantage for own in row] == pytest.approx(expected)


def test_the_words_of_real_samples_are_branched_and_their_prefix_carries_no_loss() -> None:
    run = make_run(name="cure", training={"rollouts_per_problem": 4}, resample=False)
    run.reward = lambda problem, text: float(len(text) % 3)
    groups = sample(run, PROBLEMS, Draw(0, 0))
    for group in groups:
        root, *branches = group.rollouts
        assert len(branches) == 3
        for branch in branches:
            cut = len(branch.request.prefix_ids)
            assert branch.request.prefix_ids == root.trace_ids[:cut]
            assert branch.text.startswith(run.prompts.tokenizer.decode(list(branch.request.prefix_ids)))
            assert len(branch.trace_ids) <= run.algorithm.setup.max_tokens - cut  # ty: ignore[unresolved-attribute]
