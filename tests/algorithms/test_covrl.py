"""What CoVRL samples, and what it makes of a group."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from models import character_tokenizer

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import Setup
from covrl.algorithms.contrast import contrast_metrics
from covrl.algorithms.covrl import CoVRLConfig
from covrl.config import AlgorithmTable, PromptConfig
from covrl.generation.base import Draw
from covrl.prompts import Prompts
from covrl.records import Output, Problem, Request, Rollout, ScoredGroup, Scores

PROBLEM = Problem("p", "q?", "7")
PROMPTS = Prompts(character_tokenizer(), PromptConfig())


def covrl(group: int = 8, **settings: Any) -> Any:
    return make_algorithm(AlgorithmTable.model_validate({"name": "covrl", **settings}), Setup(PROMPTS, group))


def sources(group: int, step: int = 0, **settings: Any) -> Counter[str]:
    return Counter(r.source for r in covrl(group, **settings).plan(PROBLEM, [], Draw(0, step)))


@pytest.mark.parametrize(
    ("group", "alpha", "prior"),
    [(8, 0.5, 4), (8, 0.25, 2), (8, 0.01, 1), (8, 0.99, 7), (8, 0.0, 0), (8, 1.0, 8), (2, 0.5, 1)],
)
def test_split_sources(group: int, alpha: float, prior: int) -> None:
    assert sources(group, alpha=alpha) == Counter({"prior": prior, "posterior": group - prior}) + Counter()


def test_a_fraction_of_a_trace_is_drawn_with_its_probability() -> None:
    counts = [sources(8, step, alpha=0.3)["prior"] for step in range(600)]
    assert set(counts) == {2, 3}
    assert sum(counts) / len(counts) == pytest.approx(2.4, abs=0.06)


def test_bernoulli_sources_vary_around_alpha_and_repeat_with_the_seed() -> None:
    counts = [sources(8, step, sources="bernoulli")["prior"] for step in range(300)]
    assert {0, 8} & set(counts) or len(set(counts)) >= 6
    assert sum(counts) / len(counts) == pytest.approx(4, abs=0.3)
    assert counts[:20] == [sources(8, step, sources="bernoulli")["prior"] for step in range(20)]


def test_requests_carry_their_sources_prompt_and_place() -> None:
    requests = covrl().plan(PROBLEM, [], Draw(0, 0))
    assert [r.index for r in requests] == list(range(8))
    for request in requests:
        expected = PROMPTS.prior(PROBLEM) if request.source == "prior" else PROMPTS.posterior(PROBLEM)
        assert request.prompt_ids == expected


def test_a_group_is_sampled_once() -> None:
    algorithm = covrl()
    request = algorithm.plan(PROBLEM, [], Draw(0, 0))[0]
    rollout = Rollout(request, (5,), (0.0,), "closed", "sampled", "x</think>")
    assert algorithm.plan(PROBLEM, [rollout], Draw(0, 0)) == []


def trace(
    source: str, finish: str, answer: list[float] | None, prior: float = -1.0, posterior: float = -1.0
) -> tuple[Rollout, Scores]:
    ids = (5, 6, 7)
    closing = "sampled" if finish == "closed" else "none"
    rollout = Rollout(Request("p", 0, (1,), source), ids, (0.0,) * 3, finish, closing, "x")  # ty: ignore
    values = {
        Output("trace", "prior"): torch.full((3,), prior),
        Output("trace", "posterior"): torch.full((3,), posterior),
    }
    values[Output("trace", "kl")] = torch.tensor([0.1, 0.2, 0.4])
    if answer is not None:
        values[Output("answer", "prior")] = torch.tensor(answer)
    return rollout, Scores(values)


def credits(*traces: tuple[Rollout, Scores], **settings: Any) -> list[Any]:
    group = ScoredGroup(PROBLEM, tuple(r for r, _ in traces), tuple(s for _, s in traces))
    return covrl(len(traces), **settings).credit([group])[0]


def test_rewards_and_advantages_of_a_mixed_group() -> None:
    found = credits(
        trace("prior", "closed", [-0.5, -0.5]),
        trace("prior", "closed", [-4.0, -4.0]),
        trace("posterior", "closed", [-0.1, -0.1]),
        trace("posterior", "length", None),
    )
    assert [c.reward for c in found] == pytest.approx([-1.0, -8.0, -0.2, -9.0])
    assert [c.advantage for c in found] == pytest.approx([3.55, -3.45, 4.35, -4.45])


def test_a_raised_floor_limits_what_a_wrong_trace_costs_and_is_no_trouble() -> None:
    mixed = (
        trace("prior", "closed", [-0.5, -0.5]),
        trace("prior", "closed", [-4.0, -4.0]),
        trace("prior", "closed", [-6.0, -6.0]),
        trace("posterior", "length", None),
    )
    assert [c.reward for c in credits(*mixed, floor=-5.0)] == pytest.approx([-1.0, -5.0, -5.0, -6.0])
    assert [c.reward for c in credits(*mixed, floor=-5.0, reward="mean")] == pytest.approx([-0.5, -2.5, -2.5, -3.5])
    every = {"reward/floored_share": 1.0}
    usual, raised = covrl(), covrl(floor=-5.0)
    assert usual.stop_reason(every)
    assert usual.warnings(every)
    assert raised.stop_reason(every) is None
    assert raised.warnings(every) == []


def test_only_prior_traces_with_positive_advantage_train_the_answer() -> None:
    found = credits(
        trace("prior", "closed", [-0.5, -0.5]),
        trace("prior", "closed", [-4.0, -4.0]),
        trace("posterior", "closed", [-0.1, -0.1]),
        trace("posterior", "length", None),
    )
    assert ["nll" in c.weights for c in found] == [True, False, False, False]
    assert found[0].weights["nll"].tolist() == [0.5, 0.5]


def test_a_truncated_trace_has_a_policy_weight_but_no_kl() -> None:
    good, cut = credits(trace("prior", "closed", [-0.5]), trace("posterior", "length", None))
    assert set(cut.weights) == {"policy"}
    assert float(cut.weights["policy"].max()) < 0
    assert good.weights["kl"].tolist() == [1.0] * 3


def test_an_early_end_of_sequence_is_invalid_but_keeps_its_kl() -> None:
    _, ended = credits(trace("prior", "closed", [-0.5]), trace("posterior", "eos", None))
    assert "kl" in ended.weights
    assert ended.reward == pytest.approx(-1.5)


def test_source_correction_is_one_where_the_prompts_agree_and_capped_where_they_do_not() -> None:
    same, _ = credits(trace("prior", "closed", [-0.5]), trace("posterior", "closed", [-2.5]))
    assert same.weights["policy"].tolist() == pytest.approx([1.0] * 3)
    rare, _ = credits(trace("prior", "closed", [-0.5], prior=-9.0), trace("posterior", "closed", [-2.5]))
    assert rare.weights["policy"].tolist() == pytest.approx([2.0] * 3)
    common, _ = credits(trace("prior", "closed", [-0.5], posterior=-9.0), trace("posterior", "closed", [-2.5]))
    assert common.weights["policy"].tolist() == pytest.approx([0.5] * 3, rel=1e-3)


def test_the_mixture_ratio_is_one_at_alpha_one_half() -> None:
    found = credits(trace("prior", "closed", [-0.5], prior=-9.0), trace("posterior", "closed", [-2.5]), ratio="mixture")
    assert found[0].weights["policy"].tolist() == pytest.approx([1.0] * 3)


def test_the_kl_in_the_return_charges_later_positions() -> None:
    plain = credits(trace("prior", "closed", [-0.5]), trace("posterior", "closed", [-2.5]))
    charged = credits(
        trace("prior", "closed", [-0.5]), trace("posterior", "closed", [-2.5]), kl_in_return=True, beta=2.0
    )
    difference = plain[0].weights["policy"] - charged[0].weights["policy"]
    assert difference.tolist() == pytest.approx([1.2, 0.8, 0.0])


def test_a_group_without_a_valid_trace_is_not_admitted() -> None:
    bad = [trace("prior", "length", None), trace("posterior", "eos", None)]
    good = [trace("prior", "length", None), trace("posterior", "closed", [-1.0])]
    groups = [ScoredGroup(PROBLEM, tuple(r for r, _ in g), tuple(s for _, s in g)) for g in (bad, good)]
    assert covrl().admit(groups).kept == groups[1:]


def hinted(right: list[float], wrong: list[float], answer: float) -> tuple[Rollout, Scores]:
    """A prior trace with these log-probs under the right and under the wrong hint."""
    rollout, scores = trace("prior", "closed", [answer])
    found = {Output("trace", "posterior"): torch.tensor(right), Output("trace", "foil"): torch.tensor(wrong)}
    return rollout, Scores({**scores.values, **found})


def test_a_wrong_hint_moves_the_advantage_of_tokens_in_deviations_of_the_group() -> None:
    """Rewards −1 and −3: A = ±1 with deviation √2. The second trace's tokens cannot turn its sign."""
    group = [hinted([-1.0, -2.0, -1.0], [-2.0, -1.0, -1.0], -1.0), hinted([-1.0] * 3, [-2.0] * 3, -3.0)]
    plain = credits(*group, ratio_cap=1e9)
    moved = credits(*group, ratio_cap=1e9, contrast=0.5)
    shares = [(m.weights["policy"] / p.weights["policy"]).tolist() for m, p in zip(moved, plain, strict=True)]
    assert shares[0] == pytest.approx([1 + 0.5 * 2**0.5, 1 - 0.5 * 2**0.5, 1.0], abs=1e-5)
    assert shares[1] == pytest.approx([1 - 0.5 * 2**0.5] * 3, abs=1e-5)
    strong = credits(*group, ratio_cap=1e9, contrast=1.5)
    assert strong[1].weights["policy"].tolist() == [0.0] * 3
    assert [c.advantage for c in moved] == [c.advantage for c in plain]


def test_the_contrast_reads_each_trace_once_more_and_wants_foils() -> None:
    algorithm = covrl(contrast=0.5)
    assert algorithm.wants_foils
    assert [c.name for c in algorithm.contexts] == ["prior", "posterior", "foil"]
    assert not covrl().wants_foils
    group = ScoredGroup(PROBLEM, *zip(hinted([-1.0] * 3, [-1.5] * 3, -1.0), strict=True))
    assert contrast_metrics([group]) == {"contrast/prior": pytest.approx(0.5)}


def test_the_kl_is_kept_in_its_band_and_what_moved_is_remembered() -> None:
    algorithm = covrl(kl_band=(0.1, 0.2), kl_band_moves="both")
    for kl, steering in [
        (0.15, (1.0, 0.5)),
        (0.3, (1.1, 0.52)),
        (float("nan"), (1.1, 0.52)),
        (0.3, (1.21, 0.54)),
        (0.05, (1.1, 0.52)),
    ]:
        algorithm.after_step({"kl/nats_per_token": kl})
        assert algorithm.steering == pytest.approx(steering)
        assert [s.coefficient for s in algorithm.streams if s.name == "kl"] == [algorithm.steering.beta]
    algorithm.after_step({})  # a step that was left out
    other = covrl(kl_band=(0.1, 0.2), kl_band_moves="both")
    other.load_state_dict(algorithm.state_dict())
    assert other.steering == algorithm.steering
    assert other.streams == algorithm.streams
    assert covrl().state_dict() == {}


@pytest.mark.parametrize(("moves", "ends"), [("beta", (100.0, 0.5)), ("alpha", (1.0, 0.9)), ("both", (100.0, 0.9))])
def test_what_moves_has_an_end(moves: str, ends: tuple[float, float]) -> None:
    algorithm = covrl(kl_band=(0.1, 0.2), kl_band_moves=moves)
    for _ in range(60):
        algorithm.after_step({"kl/nats_per_token": 9.0})
    assert algorithm.steering == pytest.approx(ends)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kl_band": (0.2, 0.1)}, "the lower one first"),
        ({"kl_band": (0.1, 0.2), "beta": 0.0}, "a factor cannot move it"),
        ({"kl_band_moves": "alpha"}, "does nothing with no kl_band"),
        ({"contrast_temperature": 0.1}, "does nothing with contrast = 0"),
    ],
)
def test_a_band_or_a_contrast_that_cannot_work_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CoVRLConfig.model_validate(settings)
