"""Divergences from a teacher, entry by entry: golden values, gradients, what the two clips are, and what is reached."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from covrl.objectives import clipped_divergence, composite_log_prob, divergence_entries
from covrl.objectives.distillation import Divergence

STUDENT = torch.tensor([1.0, 0.2, -0.5, 0.0], dtype=torch.float64)
TEACHER = torch.log_softmax(torch.tensor([0.1, 1.2, -0.4, -2.0], dtype=torch.float64), -1)
FORMS: tuple[Divergence, ...] = get_args(Divergence)


def gradient(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value, at)[0]


def divergence(logits: Tensor, form: Divergence, teacher: Tensor = TEACHER) -> Tensor:
    return divergence_entries(torch.log_softmax(logits, -1), teacher, form).sum()


@pytest.mark.parametrize(("form", "value"), [("forward", 0.464154), ("jsd", 0.1138), ("reverse", 0.512027)])
def test_the_golden_values(form: Divergence, value: float) -> None:
    assert float(divergence(STUDENT, form)) == pytest.approx(value, abs=5e-7)


def test_the_gradients_at_the_logits_are_the_stated_ones() -> None:
    logits = STUDENT.clone().requires_grad_()
    logs = torch.log_softmax(STUDENT, -1)
    p, q, m = logs.exp(), TEACHER.exp(), composite_log_prob(logs, TEACHER)
    stated = {
        "forward": p - q,
        "reverse": p * (logs - TEACHER - (p * (logs - TEACHER)).sum()),
        "jsd": 0.5 * p * (logs - m - (p * (logs - m)).sum()),
    }
    for form in FORMS:
        assert torch.allclose(gradient(divergence(logits, form), logits), stated[form], atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_at_the_teacher_value_and_gradient_are_zero(form: Divergence) -> None:
    logits = TEACHER.clone().requires_grad_()
    assert float(divergence(TEACHER, form)) == pytest.approx(0.0, abs=1e-12)
    assert torch.allclose(gradient(divergence(logits, form), logits), torch.zeros(4, dtype=torch.float64), atol=1e-12)


def test_half_of_the_forward_gradient_is_that_of_the_composites_kl_with_the_composite_held_still() -> None:
    """CoVRL's KL(m‖p): live in m too, it is another gradient."""
    logits = STUDENT.clone().requires_grad_()
    student = torch.log_softmax(logits, -1)
    middle = composite_log_prob(student, TEACHER)
    still, live = ((m.exp() * (m - student)).sum() for m in (middle.detach(), middle))
    half = 0.5 * gradient(divergence(logits, "forward"), logits)
    assert torch.allclose(torch.autograd.grad(still, logits, retain_graph=True)[0], half, atol=1e-12)
    assert not torch.allclose(gradient(live, logits), half, atol=1e-2)


def test_the_clip_of_each_entry_is_no_divergence_and_the_clip_of_the_sum_is_one() -> None:
    """Far away it is below its value at the teacher, and pushes further; the sum's clip lets go."""
    teacher = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    logits = torch.tensor([0.01, 0.99], dtype=torch.float64).log().requires_grad_()
    entries = divergence_entries(torch.log_softmax(logits, -1), teacher, "forward")
    entry, token = (clipped_divergence(entries, clip, 0.05) for clip in ("entry", "token"))
    assert float(entry.detach()) == pytest.approx(-0.29155, abs=5e-6)
    assert torch.autograd.grad(entry, logits, retain_graph=True)[0].tolist() == pytest.approx([0.005, -0.005])
    assert float(token.detach()) == pytest.approx(0.05)
    assert gradient(token, logits).tolist() == [0.0, 0.0]


def test_close_to_the_teacher_no_clip_binds() -> None:
    teacher = torch.log_softmax(torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0], dtype=torch.float64), -1)
    student = torch.log_softmax(teacher + torch.tensor([0.2, -0.1, 0.1, 0.0, 0.0], dtype=torch.float64), -1)
    entries = divergence_entries(student, teacher, "forward")
    values = [float(clipped_divergence(entries, clip, 0.2)) for clip in ("none", "entry", "token")]
    assert values == pytest.approx([values[0]] * 3)


# A world of two tokens out of three: state 0 is the start, state 1 + a the one after the first token a.

TRACES = list(product(range(3), repeat=2))


def log_probs(tables: Tensor) -> Tensor:
    """Log-probs of each trace's two tokens ``[9, 2]`` from logits of each state ``[4, 3]``."""
    logs = torch.log_softmax(tables, -1)
    return torch.stack([torch.stack([logs[0, a], logs[1 + a, b]]) for a, b in TRACES])


def tables_of(chances: Tensor) -> Tensor:
    """The logits ``[4, 3]`` of a distribution over the traces ``[9]``."""
    grid = chances.reshape(3, 3)
    return torch.cat([grid.sum(1)[None], grid]).log()


def summed_over_states(prior: Tensor, teacher: Tensor, form: Divergence, chances: Tensor) -> Tensor:
    """Σ_z chance(z) Σ_t D at the states that z visits."""
    own, other = torch.log_softmax(prior, -1), torch.log_softmax(teacher, -1)
    each = divergence_entries(own, other, form).sum(-1)
    return sum(
        (c * (each[0] + each[1 + a]) for c, (a, _) in zip(chances, TRACES, strict=True)), torch.zeros(()).double()
    )


@pytest.fixture
def world() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the prior and of some teacher ``[4, 3]``, and π(y|x,z) ``[9]``."""
    torch.manual_seed(0)
    prior, teacher = torch.randn(2, 4, 3, dtype=torch.float64)
    return prior.requires_grad_(), teacher, torch.rand(9, dtype=torch.float64)


def test_reverse_divergences_at_the_students_own_states_are_the_kl_of_whole_traces(world: Any) -> None:
    prior, teacher, _ = world
    own, other = log_probs(prior).sum(1).detach(), log_probs(teacher).sum(1)
    found = summed_over_states(prior, teacher, "reverse", own.exp()).detach()
    assert float(found) == pytest.approx(float((own.exp() * (own - other)).sum()), abs=1e-12)


def test_forward_to_the_exact_posterior_at_its_own_traces_has_the_gradient_of_the_answers_likelihood(
    world: Any,
) -> None:
    prior, _, likelihood = world
    marginal = (log_probs(prior).sum(1).exp() * likelihood).sum()
    posterior = (log_probs(prior).sum(1).exp() * likelihood / marginal).detach()
    found = gradient(summed_over_states(prior, tables_of(posterior), "forward", posterior), prior)
    assert torch.allclose(found, gradient(-marginal.log(), prior), atol=1e-12)


def test_many_answers_teachers_meet_in_their_mixture_which_is_the_prior_for_the_models_own_answers(world: Any) -> None:
    """Forward: what is left is the information between trace and answer; with own answers nothing is learnt."""
    prior = log_probs(world[0].detach()).sum(1).exp()
    torch.manual_seed(1)
    likelihood = torch.softmax(torch.randn(9, 3, dtype=torch.float64), -1)
    marginal = prior @ likelihood
    posteriors = prior[:, None] * likelihood / marginal
    for share in (torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), marginal):
        mixture = posteriors @ share
        logits = mixture.log().requires_grad_()
        student = torch.log_softmax(logits, -1)
        left = sum(
            (w * divergence_entries(student, posteriors[:, y].log(), "forward").sum() for y, w in enumerate(share)),
            torch.zeros(()).double(),
        )
        assert torch.allclose(gradient(left, logits), torch.zeros(9).double(), atol=1e-12)
        information = (share * (posteriors * (posteriors / mixture[:, None]).log()).sum(0)).sum()
        assert float(left.detach()) == pytest.approx(float(information), abs=1e-12)
    assert torch.allclose(posteriors @ marginal, prior, atol=1e-12)


def test_a_sampled_token_has_the_reverse_gradient_of_its_state_and_not_that_of_whole_traces(world: Any) -> None:
    prior, teacher, _ = world
    logs = log_probs(prior)
    chances = logs.sum(1).exp().detach()
    advantage = (log_probs(teacher) - logs).detach()
    sampled = gradient(-(chances[:, None] * advantage * logs).sum(), prior)
    states = gradient(summed_over_states(prior, teacher, "reverse", chances), prior)
    assert torch.allclose(sampled, states, atol=1e-12)
    whole = log_probs(prior).sum(1)
    assert not torch.allclose(
        states, gradient((whole.exp() * (whole - log_probs(teacher).sum(1))).sum(), prior), atol=1e-3
    )
