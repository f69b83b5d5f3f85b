"""What traces look like: golden values, traps, and what each warning wants."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from exact import world
from exact.world import CLOSE

from covrl.config import ReportConfig
from covrl.evaluation.trace_monitors import (
    bound_metrics,
    fork_share,
    hedging_metrics,
    hedging_pattern,
    kl_metrics,
    length_correlation,
    length_metrics,
    mc_gap,
    words_lift,
)
from covrl.generation.engine import TorchGenerator
from covrl.guards.trace_watch import PAGE, WATCHED, TraceWatch
from covrl.problems.source import ProblemSource
from covrl.records import Credit, Finish, Observed, Output, Problem, Request, Rollout, ScoredGroup, Scores
from covrl.training import loop

WORDS = ReportConfig().hedging_words


def trace(source: str, tokens: int, text: str = "", finish: Finish = "closed", index: int = 0) -> Rollout:
    request = Request("p", index, (), source)
    return Rollout(request, (0,) * tokens, (0.0,) * tokens, finish, "sampled", text)


def group(*rollouts: Rollout, kl: Sequence[Sequence[float]] = (), name: str = "p") -> ScoredGroup:
    scores = [Scores({Output("trace", "kl"): torch.tensor(values)}) for values in kl] or [Scores({}) for _ in rollouts]
    return ScoredGroup(Problem(name, "?", "1"), rollouts, tuple(scores))


def test_a_correlation_within_questions_may_have_the_other_sign_than_over_all() -> None:
    rows = [[(10, -3.0), (20, -3.2), (30, -3.4)], [(110, -1.0), (120, -1.2), (130, -1.4)]]
    found = length_correlation(rows)
    assert found is not None
    assert found.within == pytest.approx(-1)
    assert found.overall == pytest.approx(0.948052, abs=1e-6)  # golden value of the spec


def test_the_correlation_is_pooled_and_its_limit_is_fishers() -> None:
    """By hand: lengths −1, 0, 1 and −2, 0, 2, rewards 1, −2, 1 and 2, 0, −2: −8 / √(10 · 14)."""
    rows = [[(9, 1.0), (10, -2.0), (11, 1.0)], [(3, 7.0), (5, 5.0), (7, 3.0)], [(4, 4.0)]]
    found = length_correlation(rows)
    assert found is not None
    r = -8 / math.sqrt(10 * 14)
    assert found.within == pytest.approx(r)
    assert found.at_most == pytest.approx(math.tanh(math.atanh(r) + NormalDist().inv_cdf(0.975) / math.sqrt(6 - 2 - 2)))
    moved = length_correlation([[(a + 50 * i, b - 9 * i) for a, b in row] for i, row in enumerate(rows)])
    assert moved is not None
    assert moved.within == pytest.approx(r)


def test_without_spread_or_with_too_few_traces_there_is_no_correlation() -> None:
    assert length_correlation([[(5, 1.0), (5, 2.0), (5, 3.0), (5, 1.0)]]) is None
    assert length_correlation([[(5, 1.0), (6, 1.0), (7, 1.0), (8, 1.0)]]) is None
    assert length_correlation([[(5, 1.0), (6, 2.0), (7, 3.0)]]) is None  # no degree of freedom for the limit
    assert length_correlation([]) is None


def test_the_limit_covers_as_often_as_it_says() -> None:
    rng, above = random.Random(0), 0
    for _ in range(400):
        rows = [[(rng.gauss(i, 1), rng.gauss(-i, 1)) for _ in range(4)] for i in range(8)]
        found = length_correlation(rows)
        assert found is not None
        above += found.at_most >= 0
    assert 0.95 <= above / 400 <= 0.999  # 0.975, three standard errors


def test_lengths_are_compared_within_question_and_source_and_cut_traces_are_left_out() -> None:
    """Posterior traces are shorter and earn more; within each source longer traces earn more."""
    rollouts = [trace("prior", n, index=n) for n in (10, 12, 14)] + [trace("posterior", n, index=n) for n in (3, 4, 5)]
    rollouts.append(trace("prior", 99, finish="length"))
    credits = [Credit(reward=r) for r in (-9.0, -8.8, -8.6, -1.2, -1.1, -1.0, -30.0)]
    one = length_metrics([group(*rollouts)], [credits])
    assert "length/within_corr" not in one, "six traces are too few"
    found = length_metrics([group(*rollouts), group(*rollouts, name="other")], [credits, credits])
    assert one.items() <= found.items()
    assert (found["length/median_prior"], found["length/median_posterior"]) == (12.0, 4.0)
    assert found["length/short_share"] == 1.0
    longer = length_metrics([group(*(trace("prior", n, index=n) for n in (15, 16, 40)))], [[Credit()] * 3])
    assert longer["length/short_share"] == pytest.approx(1 / 3)
    assert found["style/length_ratio"] == pytest.approx(1 / 3)
    assert found["length/within_corr"] > 0.9
    assert found["length/overall_corr"] < -0.9
    assert length_metrics([group(rollouts[-1])], [[credits[-1]]]) == {}
    even = [group(*(trace("prior", 11, index=i) for i in range(8)), name=str(i)) for i in range(4)]
    odd = group(*(trace("prior", 11 + i // 3, index=i) for i in range(4)))
    rows = [[Credit(reward=0.0)] * 8] * 4 + [[Credit(reward=-float(i == 3)) for i in range(4)]]
    assert set(length_metrics([*even, odd], rows)) == {"length/median_prior", "length/short_share"}, (
        "one odd trace is no correlation"
    )


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("Wait, it MIGHT be 4. Hmm.", 3),
        ("the almighty checkmate is unlikely; waiting, seemingly", 0),
        ("maybe-maybe not", 2),
        ("check_it", 0),
        ("überall perhaps", 1),
    ],
)
def test_hedges_are_whole_words_in_any_case(text: str, hits: int) -> None:
    assert len(hedging_pattern(WORDS).findall(text)) == hits


def test_hedges_are_counted_per_hundred_tokens_by_source() -> None:
    traces = trace("prior", 30, "wait, maybe"), trace("prior", 20, "so it is 4"), trace("posterior", 10, "likely 4")
    found = hedging_metrics([group(*traces)], WORDS)
    assert found == {"style/hedges_prior": 4.0, "style/hedges_posterior": 10.0}
    assert hedging_metrics([group(*traces)], ()) == {}
    assert hedging_metrics([group(*traces)], ("so",)) == {"style/hedges_prior": 2.0, "style/hedges_posterior": 0.0}


def test_where_the_kl_lies_has_its_golden_values() -> None:
    """With the 10 % of 10 tokens, one: the 1 % is one token too."""
    kl = [4.0, 1.0, 0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]
    found = kl_metrics([group(trace("prior", 4), trace("prior", 6), kl=[kl[:4], kl[4:]])])
    assert found == pytest.approx({"style/kl_top1_share": 0.666667, "style/kl_gini": 0.775}, abs=1e-6)


def test_a_planted_word_takes_all_of_the_kl_and_an_even_one_has_none_above() -> None:
    planted = kl_metrics([group(trace("prior", 200), kl=[[0.0] * 199 + [3.0]])])
    assert planted == pytest.approx({"style/kl_top1_share": 1.0, "style/kl_gini": 199 / 200})
    even = kl_metrics([group(trace("prior", 200), kl=[[0.5] * 200])])
    assert even == pytest.approx({"style/kl_top1_share": 0.01, "style/kl_gini": 0.0}, abs=1e-9)


def test_a_cut_trace_has_no_part_in_it() -> None:
    cut = group(trace("prior", 1, finish="length"), trace("prior", 2), kl=[[9.0], [1.0, 1.0]])
    assert kl_metrics([cut])["style/kl_gini"] == pytest.approx(0.0)
    assert kl_metrics([group(trace("prior", 2), kl=[[0.0, 0.0]])]) == kl_metrics([group(trace("prior", 2))]) == {}


def test_the_bound_of_several_traces_has_its_golden_value_over_that_of_one() -> None:
    log_probs = torch.tensor([0.6, 0.3, 0.02, 0.1]).double().log()
    assert mc_gap(log_probs.tolist()) == pytest.approx(0.61586, abs=1e-6)
    assert mc_gap([-3.0] * 4) == pytest.approx(0)
    rows = [trace("prior", 2, index=i) for i in range(4)] + [trace("posterior", 2, index=4)]
    scores = [Scores({Output("answer", "prior"): value[None]}) for value in [*log_probs, torch.tensor(-9.0)]]
    assert bound_metrics([ScoredGroup(Problem("p", "?", "1"), tuple(rows), tuple(scores))]) == pytest.approx(
        {"bound/mc_gap": 0.61586}, abs=1e-6
    )
    assert bound_metrics([group(*rows)]) == {}


def test_a_fork_is_uncertain_and_has_a_second_choice() -> None:
    """Of four tokens one is a fork; another is uncertain over many small choices, and one torn without uncertainty."""
    seconds = tuple((math.log(0.3), math.log(p)) for p in (0.25, 0.05, 0.25, 0.1))
    seen = Observed(entropy=(1.5, 2.5, 0.9, 0.2), top_log_probs=seconds)
    observed = replace(trace("prior", 4), observed=seen)
    assert fork_share([observed, trace("prior", 9)]) == 0.25
    assert fork_share([trace("prior", 9)]) is None


def test_the_lift_of_words_is_one_where_all_tokens_have_the_same_kl_and_counts_whole_words() -> None:
    """A token a piece of text; "wait" is one of two tokens, "so" is in no token of "also"."""
    pieces = ["wa", "it", " al", "so", " 4", " so", " 5", "."]

    def decode(ids: Sequence[int]) -> str:
        return "".join(pieces[i] for i in ids)

    def lift(kl: Sequence[float]) -> float:
        rollout = replace(trace("prior", len(pieces)), trace_ids=tuple(range(len(pieces))))
        found = words_lift([group(rollout, kl=[kl])], WORDS, decode)
        return found["style/kl_words_lift"]

    assert lift([1.0] * 8) == pytest.approx(1)
    assert lift([1, 1, 0, 0, 0, 1, 0, 0]) == pytest.approx(8 / 3)
    assert lift([0, 0, 0, 1, 1, 0, 1, 1]) == 0
    assert words_lift([group(trace("prior", 8, finish="length"), kl=[[1.0] * 8])], WORDS, decode) == {}
    assert words_lift([group(trace("prior", 8))], WORDS, decode) == {}


HEALTHY = {
    "length/median_prior": 60.0, "length/within_corr": 0.05, "length/within_corr_upper": 0.15, "thought/gain": 0.5,
    "style/hedges_prior": 1.0, "eval/accuracy": 0.3, "style/kl_top1_share": 0.3, "kl/nats_per_trace": 5.0,
    "style/length_ratio": 0.9, "posterior/log_w_var": 9.0, "posterior/ess": 2.5, "hint/blind_share": 0.5,
    "eval/hint_margin": 2.0, "eval/hint_margin_upper": 3.0, "style/kl_words_lift": 1.2, "thought/helps_share": 0.6,
    "bound/mc_gap": 0.4,
}  # fmt: skip


def said(now: dict[str, float], start: dict[str, float] | None = None) -> list[str]:
    """What begins the warnings after three steps of the one and three of the other."""
    watch, warnings = TraceWatch(), []
    for metrics in [HEALTHY | (start or {})] * 3 + [HEALTHY | (start or {}) | now] * 3:
        warnings = watch.step(metrics)
    assert all(PAGE in text for text in warnings)
    return [text.partition(":")[0] for text in warnings]


def test_all_that_is_watched_is_in_the_healthy_run_which_is_not_warned_of() -> None:
    assert set(HEALTHY) == set(WATCHED)
    assert said({}) == []


@pytest.mark.parametrize(
    ("name", "signs"),
    [
        ("length collapse", {"length/median_prior": 22.0, "length/within_corr": -0.2}),
        ("length collapse", {"length/median_prior": 22.0, "thought/gain": 0.2}),
        ("doubt is vanishing", {"style/hedges_prior": 0.4}),
        ("the KL is on few tokens", {"style/kl_top1_share": 0.6}),
        ("the KL is about style", {"style/kl_words_lift": 3.5}),
        ("thoughts do not help", {"thought/helps_share": 0.3, "thought/gain": -0.2}),
        ("no thought matters", {"bound/mc_gap": 0.01, "thought/gain": -0.1}),
        ("summarising posterior", {"style/length_ratio": 0.3}),
        ("loose bound", {"posterior/log_w_var": 40.0, "posterior/ess": 1.2}),
        ("the hint changes the style only", {"hint/blind_share": 0.9}),
        ("traces defend any answer", {"eval/hint_margin_upper": -0.1}),
    ],
)
def test_each_trouble_is_named_where_all_its_signs_are_there(name: str, signs: dict[str, float]) -> None:
    assert said(signs) == [name]
    for left_out in signs if len(signs) > 1 else ():
        assert said({sign: value for sign, value in signs.items() if sign != left_out}) == []


def test_what_harms_nobody_is_not_warned_of() -> None:
    assert said({"style/hedges_prior": 0.1, "eval/accuracy": 0.5}) == []  # surer, and right more often
    assert said({"style/kl_top1_share": 0.9, "kl/nats_per_trace": 0.2}) == []  # the KL is learnt
    assert said({"length/median_prior": 22.0}) == []  # shorter, and no worse for it
    assert said({"length/median_prior": 5.0}) == ["length collapse"]  # but not to nothing


def test_before_training_it_says_that_long_traces_earn_less() -> None:
    earns_less = {"length/within_corr": -0.3, "length/within_corr_upper": -0.1}
    assert said({}, earns_less) == ["long traces earn less"]
    assert said({}, earns_less | {"length/within_corr_upper": 0.02}) == []
    assert said(earns_less) == []


def test_a_warning_wants_three_looks_and_a_fresh_one() -> None:
    watch = TraceWatch()
    looks = [watch.step({"hint/blind_share": 0.95}) for _ in range(3)]
    assert [len(found) for found in looks] == [0, 0, 1]
    assert watch.step({"length/median_prior": 50.0, "hint/blind_share": math.nan}) == []
    assert len(watch.step({"hint/blind_share": 0.95})) == 1


def test_it_goes_on_from_its_state() -> None:
    whole, broken = TraceWatch(), TraceWatch()
    for step in range(8):
        state, broken = broken.state_dict(), TraceWatch()
        broken.load_state_dict(json.loads(json.dumps(state)))
        metrics = HEALTHY | {"length/median_prior": 60.0 - 8 * step, "length/within_corr": -0.2}
        metrics = {name: value for name, value in metrics.items() if step % 2 or not name.startswith("eval/")}
        assert whole.step(metrics) == broken.step(metrics)
    assert whole.state_dict() == broken.state_dict()
    broken.load_state_dict({})
    assert broken.state_dict() == TraceWatch().state_dict()


def test_a_run_that_is_paid_for_short_traces_is_warned_of() -> None:
    """Three tokens, traces of up to twelve: what each token costs is taken off the reward."""
    run = world.make_run(name="jepo", group=8)
    training = run.config.training.model_copy(
        update={"steps": 40, "problems_per_step": 2, "learning_rate": 2e-2, "warmup_steps": 0, "stream_norms_every": 0}
    )
    generation = run.config.generation.model_copy(update={"max_trace_tokens": 12})
    guards = run.config.guards.model_copy(update={"publish_check_every": 0})
    run.config = run.config.model_copy(update={"training": training, "generation": generation, "guards": guards})
    policy = run.models["policy"].model
    with torch.no_grad():
        policy.lm_head.weight[CLOSE] -= 0.5
    run.generator = TorchGenerator(policy, run.prompts.tokenizer, 64)
    run.source = ProblemSource([world.PROBLEM, Problem("other", "b", "a")], 0)
    run.reward = lambda problem, text: -5.0 * len(text)
    reports = list(loop.steps(run))
    warned = [r for r in reports if any(text.startswith("length collapse") for text in r.warnings)]
    assert reports[0].metrics["length/within_corr"] < -0.5
    assert warned
    assert warned[0].metrics["length/median_prior"] < reports[0].metrics["length/median_prior"]
