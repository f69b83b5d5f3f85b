"""The posterior gain: golden values, who is left out, what is said of it, and planted posteriors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training.test_step import make_run

from covrl.evaluation.posterior_gain import (
    BOOTSTRAP_FROM,
    FEWEST_PROBLEMS,
    PosteriorGain,
    Worth,
    draw_roles,
    gain_sentence,
    over_problems,
    posterior_gain,
)
from covrl.generation.base import Draw, Sampling
from covrl.records import Problem, Request, Rollout
from covrl.statistics import Interval, bootstrap_interval, t_interval


def rows(problem: int, prior: Sequence[float | None], posterior: Sequence[float | None]) -> list[Worth]:
    named = str(problem)
    return [Worth(named, "prior", v) for v in prior] + [Worth(named, "posterior", v) for v in posterior]


def test_golden_values() -> None:
    """Problems 0 to 2 differ by −1 − (−2) = 1, −4 − (−3) = −1 and −1 − (−4) = 3; the last has no closed posterior."""
    traces = [
        *rows(0, [-1.0, -3.0], [-1.0, None]),
        *rows(1, [-3.0, None], [-5.0, -3.0]),
        *rows(2, [-4.0, -4.0], [-0.5, -1.5]),
        *rows(3, [-9.0, -9.0], [None, None]),
    ]
    found = posterior_gain(traces)
    assert found.nats == pytest.approx(1.0)
    assert found.interval == pytest.approx((1 - 4.302653 * 2 / 3**0.5, 1 + 4.302653 * 2 / 3**0.5), abs=1e-5)
    assert (found.problems, found.asked) == (3, 4)
    assert found.closed == {"prior": 7 / 8, "posterior": 5 / 8}
    assert posterior_gain(traces[::-1]) == replace(found, nats=pytest.approx(1.0))


def test_problems_count_alike_however_many_of_their_traces_closed() -> None:
    """A mean over traces would be 0.2 here."""
    traces = rows(0, [0.0] * 9, [0.0] * 9) + rows(1, [-1.0], [1.0])
    assert posterior_gain(traces).nats == pytest.approx(1.0)


def test_traces_of_a_problem_stay_together_in_the_interval() -> None:
    """A hundred copies of each trace say nothing new of other problems."""
    once = [row for p in range(30) for row in rows(p, [-2.0], [-2.0 + (-1) ** p])]
    many = [row for p in range(30) for row in rows(p, [-2.0] * 100, [-2.0 + (-1) ** p] * 100)]
    assert posterior_gain(once).interval == posterior_gain(many).interval


def test_intervals_of_few_problems_are_students_and_of_more_a_bootstrap() -> None:
    values = [float(i % 5) for i in range(BOOTSTRAP_FROM)]
    assert over_problems(values) == bootstrap_interval(values)
    assert over_problems(values[:-1]) == t_interval(values[:-1])
    assert over_problems([1.0]) is None


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=8), st.floats(-5, 5))
def test_what_is_added_to_all_posterior_traces_is_added_to_the_gain(
    pairs: list[tuple[float, float]], shift: float
) -> None:
    def of(added: float) -> float | None:
        return posterior_gain([r for i, (p, q) in enumerate(pairs) for r in rows(i, [p], [q + added])]).nats

    assert of(shift) == pytest.approx((of(0.0) or 0.0) + shift)


def test_without_traces_of_one_prompt_there_is_no_gain() -> None:
    with pytest.raises(ValueError, match="traces of both prompts"):
        posterior_gain(rows(0, [-1.0], []))


def planted(gain: float, problems: int = 40, seed: int = 0) -> PosteriorGain:
    """Easy and hard problems, four noisy traces of each prompt, the posterior's better by ``gain``."""
    rng = random.Random(seed)
    traces = []
    for p in range(problems):
        base = rng.gauss(-10, 4)
        prior, posterior = ([base + rng.gauss(0, 1) + g for _ in range(4)] for g in (0.0, gain))
        traces += rows(p, [None, *prior[1:]] if rng.random() < 0.3 else prior, posterior)
    return posterior_gain(traces)


def test_a_better_posterior_is_called_better_and_a_useless_one_is_not() -> None:
    better, useless, worse = (gain_sentence(planted(g)) for g in (2.0, 0.0, -2.0))
    assert better.startswith("Posterior traces are worth more than prior ones here (gain ")
    assert useless.startswith("Posterior traces are worth no more than prior ones here (gain ")
    assert "CoVRL is JEPO at twice the price" in useless
    assert worse.startswith("Posterior traces are worth less than prior ones here (gain -")
    assert "JEPO" not in better
    assert "ravr pays for them and gets nothing" in gain_sentence(planted(0.0), "ravr")


def test_a_useless_posterior_is_called_better_about_as_often_as_the_level_says() -> None:
    """2.5 % of 200 seeds are 5; of few problems as of many."""
    for problems in (6, 40):
        said = [gain_sentence(planted(0.0, problems, seed)) for seed in range(200)]
        assert sum(text.startswith("Posterior traces are worth more") for text in said) <= 11


def test_what_is_not_decided_is_said_to_be_so() -> None:
    wide = PosteriorGain(2.0, Interval(-3.0, 7.0), 8, 8, {"prior": 1.0, "posterior": 0.5})
    assert "not shown to be worth more" in gain_sentence(wide)
    assert "(closed: prior 100%, posterior 50%)" in gain_sentence(wide)
    none = posterior_gain([row for p in range(9) for row in rows(p, [None], [-1.0])])
    assert (none.nats, none.interval, none.problems) == (None, None, 0)
    said = f"undecided: 0 of 9 problems have closed traces of both prompts, and at least {FEWEST_PROBLEMS} are needed"
    assert said in gain_sentence(none)


class Copying:
    """A generator whose posterior traces state the answer and whose prior ones do not, or the other way round."""

    def __init__(self, tokenizer: object, told: dict[str, str], helpful: str) -> None:
        self.tokenizer, self.told, self.helpful = tokenizer, told, helpful

    def publish(self, version: int) -> None: ...

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        found = []
        for r in requests:
            text = (self.told[r.problem_id] if r.source == self.helpful else "?") + sampling.stop
            ids = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)  # ty: ignore
            found.append(Rollout(r, ids, (0.0,) * len(ids), "closed", "sampled", text))
        return found


@pytest.mark.parametrize(("helpful", "sign"), [("posterior", 1), ("prior", -1)])
def test_traces_that_help_the_answer_are_found_with_a_real_model(helpful: str, sign: int) -> None:
    """A model that was taught to answer what its trace says: the gain has the sign of who says it."""
    run = make_run("gpt2", "float32")
    problems = [Problem(f"p{i}", f"{i}?", str(i)) for i in range(8)]
    told = Copying(run.prompts.tokenizer, {p.id: p.answer for p in problems}, "posterior")
    sampling = Sampling(24, run.prompts.config.close)
    model = run.models["policy"]
    lesson = draw_roles(told, model, run.prompts, problems, sampling, 1, 0)
    rows_of = [run.prompts.prior_row(d.problem, d.rollout) for d in lesson if d.rollout.source == "posterior"]
    optimizer = torch.optim.Adam(run.parameters, 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        for row in rows_of:
            start, stop = row.spans["answer"]
            ids = torch.tensor([row.ids])
            log_probs = torch.log_softmax(model.model(ids).logits[0, start - 1 : stop - 1], -1)
            (-log_probs.gather(1, ids[0, start:stop, None]).mean() / len(rows_of)).backward()
        optimizer.step()
    scripted = Copying(run.prompts.tokenizer, told.told, helpful)
    drawn = draw_roles(scripted, model, run.prompts, problems, sampling, 2, 0)
    assert [d.rollout.request.index for d in drawn[:4]] == [0, 1, 2, 3], (
        "samples of a problem have numbers of their own"
    )
    found = posterior_gain([d.worth for d in drawn])
    assert found.nats is not None
    assert found.nats * sign > 1
