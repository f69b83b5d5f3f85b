"""The chunked head: same numbers and gradients as one piece, and never a whole [N, V] tensor."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from covrl.models.projection import Projection
from covrl.objectives import composite_kl
from covrl.scoring import head as head_module
from covrl.scoring.head import apply_head, composite, composite_entropy, log_prob

N, D, V = 23, 6, 40


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    prior, posterior = (torch.randn(N, D, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).requires_grad_()
    bias = torch.randn(V, generator=g, dtype=torch.float64).requires_grad_()
    return prior, posterior, weight, bias, torch.randint(V, (N,), generator=g)


def mixed(outputs: tuple[Tensor, ...]) -> Tensor:
    return sum(((i + 1.0) * torch.linspace(-1, 2, N, dtype=torch.float64) * out).sum() for i, out in enumerate(outputs))  # ty: ignore


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
@pytest.mark.parametrize(
    "head",
    [composite, composite_entropy, partial(composite, detach_reference=True)],
    ids=["plain", "entropy", "control"],
)
@pytest.mark.parametrize("rows", [2, 1000])
def test_chunks_and_blocks_of_rows_do_not_change_values_or_gradients(
    chunk: int, rows: int, head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "BLOCK_ELEMENTS", rows * V)
    prior, posterior, weight, bias, targets = inputs()
    project = Projection(weight, bias, softcap=3.0, temperature=0.7)
    learned = slice(3)  # entropies are to look at
    whole = head([project(prior), project(posterior)], targets)
    expected = torch.autograd.grad(mixed(whole[learned]), (prior, posterior, weight, bias))
    outputs = apply_head(head, [prior, posterior], targets, [project, project], chunk)
    found = torch.autograd.grad(mixed(outputs[learned]), (prior, posterior, weight, bias))
    with torch.no_grad():
        seen = head([project(prior), project(posterior)], targets)
    for a, b in zip((*outputs, *found), (*seen, *expected), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_two_models_get_their_own_gradients() -> None:
    prior, posterior, weight, bias, targets = inputs()
    other = weight.detach().flip(0).clone().requires_grad_()
    project = [Projection(weight, bias), Projection(other)]
    whole = composite([p(h) for p, h in zip(project, (prior, posterior), strict=True)], targets)
    expected = torch.autograd.grad(mixed(whole), (weight, other, bias))
    found = torch.autograd.grad(
        mixed(apply_head(composite, [prior, posterior], targets, project, 4)), (weight, other, bias)
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_finite_differences() -> None:
    prior, posterior, weight, _, targets = inputs(3)

    def function(p: Tensor, q: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        project = Projection(w)
        return apply_head(composite, [p, q], targets, [project, project], 7)

    assert torch.autograd.gradcheck(function, (prior, posterior, weight))


def test_one_output_alone_can_be_differentiated() -> None:
    prior, posterior, weight, _, targets = inputs()
    project = Projection(weight)
    log_p, _, kl = apply_head(composite, [prior, posterior], targets, [project, project], 6)
    (found,) = torch.autograd.grad(kl.sum(), posterior, retain_graph=True)
    (expected,) = torch.autograd.grad(composite_kl(prior @ weight.T, posterior @ weight.T).sum(), posterior)
    assert torch.allclose(found, expected, atol=1e-12)
    log_p.sum().backward()
    assert posterior.grad is None or float(posterior.grad.abs().max()) == 0


def test_no_positions() -> None:
    prior, _, weight, _, _ = inputs()
    (out,) = apply_head(log_prob, [prior[:0]], torch.zeros(0, dtype=torch.long), [Projection(weight)], 4)
    assert out.shape == (0,)
    out.sum().backward()


def test_low_precision_is_widened() -> None:
    prior, _, weight, _, targets = inputs()
    hidden, w = prior.detach().bfloat16(), weight.detach().bfloat16()
    (out,) = apply_head(log_prob, [hidden], targets, [Projection(w)], 8)
    assert out.dtype == torch.float32
    exact = torch.log_softmax((hidden @ w.T).double(), -1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(out.double(), exact, atol=1e-5)


def test_a_projection_called_by_itself_multiplies_in_its_dtype_too() -> None:
    """As guards and probes call it: wide weights, short products."""
    prior, _, weight, bias, _ = (t.detach().float() for t in inputs())
    logits = Projection(weight, bias, dtype=torch.bfloat16)(prior)
    expected = torch.nn.functional.linear(prior.bfloat16(), weight.bfloat16(), bias.bfloat16()).float()
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor):
                self.largest = max(self.largest, item.numel())
        return result


def test_no_tensor_spans_positions_and_vocabulary() -> None:
    """Forward and backward: the largest tensor is a chunk of logits, however many positions there are."""
    positions, vocabulary, chunk = 600, 500, 8
    hidden = torch.randn(positions, D, requires_grad=True)
    weight = torch.randn(vocabulary, D, requires_grad=True)
    targets = torch.randint(vocabulary, (positions,))
    with LargestTensor() as seen:
        project = Projection(weight)
        outputs = apply_head(composite, [hidden, hidden], targets, [project, project], chunk)
        sum(out.sum() for out in outputs).backward()  # ty: ignore
    assert seen.largest == chunk * vocabulary


class OfWeight(TorchDispatchMode):
    """Counts the results that are as large as a weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        in_place = func.__name__.partition(".")[0].endswith("_")
        own = isinstance(result, Tensor) and not func.is_view and not in_place
        self.count += own and result.numel() == self.size
        return result


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_weights_gradient_is_not_whole_beside_its_sum(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None
) -> None:
    """Nor is a weight cast for every chunk; how many rows are made at a time changes nothing."""
    vocabulary, width, positions = 300, 16, 40
    found = []
    for rows in (1000, 7):
        monkeypatch.setattr(head_module, "ROWS_ELEMENTS", rows * width)
        torch.manual_seed(0)
        hidden = torch.randn(positions, width, requires_grad=True)
        weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((vocabulary, width), (vocabulary,)))
        project = Projection(weight, bias, dtype=dtype)
        with OfWeight(vocabulary * width) as forward:
            (out,) = apply_head(log_prob, [hidden], torch.arange(positions), [project], 4)
        with OfWeight(vocabulary * width) as backward:
            out.sum().backward()
        assert forward.count == (dtype is not None)
        if rows == 7:
            assert backward.count == 1 + (dtype is not None)  # the sum; the cast
        found.append((hidden.grad, weight.grad, bias.grad))
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_where_launching_costs_a_chunk_is_one_product(
    dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form of accelerators, here on a CPU: the same gradients, and no operation more for more of the vocabulary.

    A CPU has the same form where the weight's gradient can be added in one operation: where there is one dtype.
    """
    monkeypatch.setattr(head_module, "ROWS_ELEMENTS", 2 * D)
    prior, posterior, weight, bias, targets = inputs()

    def gradients() -> tuple[tuple[Tensor, ...], int]:
        project = Projection(weight, bias, dtype=dtype)
        outputs = apply_head(composite, [prior, posterior], targets, [project, project], 12)
        with Count() as operations:
            found = torch.autograd.grad(mixed(outputs), (prior, posterior, weight, bias))
        return found, operations.products

    expected, by_rows = gradients()
    monkeypatch.setattr(head_module, "has_caches", lambda tensor: False)
    found, whole = gradients()
    tolerance = 1e-12 if dtype is None else 2e-2
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)
    assert whole == 2 * 2 * 3  # logits, and gradients of hidden states and weight
    if dtype is None:
        assert by_rows == whole
    else:
        assert by_rows > 2 * 2 * V // 2  # two chunks, two contexts, two rows of the weight at a time


class Count(TorchDispatchMode):
    """Counts matrix products."""

    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))
