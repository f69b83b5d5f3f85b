"""What CoVRL samples, and what it makes of a group."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from models import character_tokenizer

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import Setup
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
