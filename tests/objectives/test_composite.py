"""The composite, its KL and the sampled estimator: values, signs, gradients, against the formulas of the spec."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from covrl.objectives import composite_kl, composite_kl_estimate, composite_log_prob
from covrl.objectives.composite import composite_gradient


def logits(seed: int, *shape: int, scale: float = 1.5) -> Tensor:
    return (
        scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).requires_grad_()


def test_composite_log_prob_is_the_log_of_the_mean() -> None:
    prior, posterior = torch.tensor([0.2, 0.9]).log(), torch.tensor([0.6, 0.1]).log()
    assert composite_log_prob(prior, posterior).exp().tolist() == pytest.approx([0.4, 0.5])


def test_gradient_of_the_composite_is_shared_by_responsibility() -> None:
    prior = torch.tensor(math.log(0.1)).requires_grad_()
    posterior = torch.tensor(math.log(0.3)).requires_grad_()
    composite_log_prob(prior, posterior).backward()
    assert prior.grad is not None
    assert posterior.grad is not None
    assert (float(prior.grad), float(posterior.grad)) == pytest.approx((0.25, 0.75))


def test_composite_log_prob_survives_extreme_inputs() -> None:
    prior, posterior = torch.tensor([-800.0, -2000.0]), torch.tensor([-1.0, -2000.0])
    assert composite_log_prob(prior, posterior).tolist() == pytest.approx([-1 - math.log(2), -2000.0])


def test_kl_matches_the_sum_over_the_vocabulary() -> None:
    a, c = logits(0, 7, 50), logits(1, 7, 50)
    p, q = a.softmax(-1), c.softmax(-1)
    m = (p + q) / 2
    assert torch.allclose(composite_kl(a, c), (m * (m / p).log()).sum(-1), rtol=1e-12)


def test_kl_and_its_gradient_vanish_where_the_prompts_agree() -> None:
    a = logits(2, 3, 20)
    same = a.detach().clone().requires_grad_()
    kl = composite_kl(a, same)
    kl.sum().backward()
    assert float(kl.detach().abs().max()) < 1e-15
    assert a.grad is not None
    assert float(a.grad.abs().max()) < 1e-12


def test_gradient_in_both_logits_is_the_one_of_the_spec() -> None:
    """Spec 9.1: dk/dc = ½q(L − E_q L),  dk/da = ½p(L − E_p L) − ½(q − p). The last term carries q into p."""
    a, c = logits(3, 30), logits(4, 30)
    composite_kl(a, c).backward()
    p, q = a.detach().softmax(-1), c.detach().softmax(-1)
    ratio = ((p + q) / 2 / p).log()
    in_posterior = 0.5 * q * (ratio - (q * ratio).sum())
    in_prior = 0.5 * p * (ratio - (p * ratio).sum()) - 0.5 * (q - p)
    assert torch.allclose(c.grad, in_posterior, atol=1e-14)
    assert torch.allclose(a.grad, in_prior, atol=1e-14)


def test_a_detached_reference_loses_just_the_term_that_carries_q_into_p() -> None:
    a, c = logits(3, 30), logits(4, 30)
    live = torch.autograd.grad(composite_kl(a, c), (a, c))
    detached = torch.autograd.grad(composite_kl(a, c, detach_reference=True), (a, c))
    p, q = a.detach().softmax(-1), c.detach().softmax(-1)
    assert torch.allclose(live[0] - detached[0], -0.5 * (q - p), atol=1e-14)
    assert torch.equal(live[1], detached[1])


def test_gradient_agrees_with_finite_differences() -> None:
    a, c = logits(5, 4, 9), logits(6, 4, 9)
    assert torch.autograd.gradcheck(composite_kl, (a, c))


@given(st.integers(0, 10_000), st.floats(0.01, 8.0))
def test_kl_is_bounded_below_and_by_half_the_posteriors(seed: int, scale: float) -> None:
    """0 ≤ KL(m‖p) ≤ ½ KL(q‖p), by convexity."""
    a, c = logits(seed, 12, scale=scale), logits(seed + 1, 12, scale=scale)
    p, q = a.log_softmax(-1), c.log_softmax(-1)
    whole = (q.exp() * (q - p)).sum()
    assert -1e-15 <= composite_kl(a, c).item() <= whole.item() / 2 + 1e-12


@pytest.mark.parametrize("detached", [False, True])
def test_tokens_too_rare_for_float32_count_with_what_float64_gives(detached: bool) -> None:
    """Token 0 is 0 under both prompts in float32, token 1 under the prior alone, token 2 under the posterior alone."""
    exact = [t.tolist() for t in (torch.tensor([-900.0, -700.0, 3.0, 2.0]), torch.tensor([-800.0, 2.0, -600.0, 3.0]))]
    found = {}
    for dtype in (torch.float32, torch.float64):
        pair = [torch.tensor([row], dtype=dtype).requires_grad_() for row in exact]
        kl = composite_kl(*pair, detach_reference=detached)
        slopes = torch.autograd.grad(kl.sum(), pair)
        with torch.no_grad():
            logs = [torch.log_softmax(row, dim=-1) for row in pair]
            given = (None, None, torch.ones(1, dtype=dtype))
            closed = composite_gradient(logs[0], logs[1], torch.tensor([0]), given, detach_reference=detached)
        found[dtype] = [t.detach().double() for t in (kl, *slopes, *closed)]
    for short, whole in zip(*found.values(), strict=True):
        assert torch.isfinite(short).all()
        assert torch.allclose(short, whole, rtol=1e-5, atol=1e-5)


def test_kl_widens_low_precision() -> None:
    a, c = logits(7, 5, 40).detach(), logits(8, 5, 40).detach()
    low = composite_kl(a.bfloat16(), c.bfloat16())
    assert low.dtype == torch.float32
    exact = composite_kl(a.bfloat16().double(), c.bfloat16().double())
    assert torch.allclose(low.double(), exact, rtol=1e-5)


@pytest.mark.parametrize("source", ["prior", "posterior", "other"])
def test_the_estimate_has_the_exact_mean_and_gradient(source: str) -> None:
    """Σ_v s(v)·k̂(v) = KL(m‖p) for any s, in value and in the gradient of both logits."""
    a, c = logits(9, 25), logits(10, 25)
    p, q = a.log_softmax(-1), c.log_softmax(-1)
    drawn = {"prior": p, "posterior": q, "other": logits(11, 25).log_softmax(-1)}[source].detach()
    mean = (drawn.exp() * composite_kl_estimate(p, q, drawn)).sum()
    exact = composite_kl(a, c)
    assert float(mean.detach()) == pytest.approx(float(exact.detach()), rel=1e-12)
    found = torch.autograd.grad(mean, (a, c))
    expected = torch.autograd.grad(exact, (a, c))
    for f, e in zip(found, expected, strict=True):
        assert torch.allclose(f, e, atol=1e-14)


@given(st.floats(-30, 0), st.floats(-30, 0), st.floats(-30, 0))
def test_the_estimate_is_never_negative(prior: float, posterior: float, source: float) -> None:
    values = [torch.tensor(v, dtype=torch.float64) for v in (prior, posterior, source)]
    estimate = float(composite_kl_estimate(*values))
    scale = math.exp(max(prior, posterior) - source)
    assert estimate >= -1e-15 * scale


def test_the_estimate_takes_the_values_of_the_papers_two_estimators() -> None:
    p, q = torch.tensor([0.1, 0.5, 0.4]).double(), torch.tensor([0.6, 0.3, 0.1]).double()
    m = (p + q) / 2
    prior_drawn = (m / p) * (m / p).log() - m / p + 1
    posterior_drawn = (m / q) * (m / p).log() + m / q - 1
    assert torch.allclose(composite_kl_estimate(p.log(), q.log(), p.log()), prior_drawn)
    assert torch.allclose(composite_kl_estimate(p.log(), q.log(), q.log()), posterior_drawn)


def test_the_estimate_detaches_its_source_itself() -> None:
    prior, posterior = torch.tensor(-1.0).requires_grad_(), torch.tensor(-2.0).requires_grad_()
    composite_kl_estimate(prior, posterior, prior).backward()
    p, q = math.exp(-1.0), math.exp(-2.0)
    m = (p + q) / 2
    assert prior.grad is not None
    assert posterior.grad is not None
    assert float(prior.grad) == pytest.approx((0.5 * p * math.log(m / p) + p - m) / p, rel=1e-5)
    assert float(posterior.grad) == pytest.approx(0.5 * q * math.log(m / p) / p, rel=1e-5)


def test_sequence_mixture_factorises_into_conditionals() -> None:
    """Spec 2 D: Π_t b_t = αP(z) + (1−α)Q(z) with b's posterior weight of the prior branch."""
    p, q = logits(12, 6).detach().sigmoid(), logits(13, 6).detach().sigmoid()
    alpha, product, log_odds = 0.3, 1.0, math.log(0.3 / 0.7)
    for pt, qt in zip(p.tolist(), q.tolist(), strict=True):
        weight = 1 / (1 + math.exp(-log_odds))
        product *= weight * pt + (1 - weight) * qt
        log_odds += math.log(pt) - math.log(qt)
    assert product == pytest.approx(alpha * float(p.prod()) + (1 - alpha) * float(q.prod()), rel=1e-12)
