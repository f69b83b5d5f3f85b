"""Head functions on chunks of logits: the one way from hidden states to per-token numbers.

A head function maps the logits of one or more rows, aligned token by token, to per-token outputs ``[n]``. It is
applied to chunks of positions, and the backward pass computes each chunk's logits again, so that the largest tensor
with a vocabulary axis is ``[chunk, V]`` whatever the batch, in the forward and in the backward pass.

A chunk is one matrix product. What follows it is dozens of passes over the vocabulary, so on a CPU it is done a few
rows at a time (:func:`_blocks`), whose numbers stay in the processor's cache from one pass to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from covrl.models.projection import Projection
from covrl.objectives.composite import composite_gradient, kl_of_probabilities, normalised_composite_kl
from covrl.objectives.kl import reverse_kl

Head = Callable[[Sequence[Tensor], Tensor], tuple[Tensor, ...]]
"""(logits ``[n, V]`` of each context, targets ``[n]``) -> outputs, each ``[n]``."""


def log_prob(logits: Sequence[Tensor], targets: Tensor) -> tuple[Tensor]:
    """Log-probs of the targets, ``[n]``, under the one context that is read."""
    (single,) = logits
    return (_at(torch.log_softmax(single, dim=-1), targets),)


def value(logits: Sequence[Tensor], targets: Tensor) -> tuple[Tensor]:
    """The value of the state before each target, ``[n]``, under a model whose output layer is one number a position."""
    del targets
    (single,) = logits
    return (single[:, 0],)


def distribution(logits: Sequence[Tensor], targets: Tensor) -> tuple[Tensor]:
    """The probabilities of all tokens, ``[n, V]``, under the one context that is read: for spans of one token a row.

    The targets are not looked at. It is the one head with a vocabulary axis, so no loss may use it.
    """
    del targets
    (single,) = logits
    return (torch.softmax(single, dim=-1),)


def composite(
    logits: Sequence[Tensor], targets: Tensor, detach_reference: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(log p, log q, exact KL(m‖p)), each ``[n]``, for contexts (prior, posterior); see ``composite_kl``."""
    prior, posterior = (torch.log_softmax(part, dim=-1) for part in logits)
    kl = normalised_composite_kl(prior, posterior, detach_reference=detach_reference)
    return _at(prior, targets), _at(posterior, targets), kl


def composite_entropy(logits: Sequence[Tensor], targets: Tensor, detach_reference: bool = False) -> tuple[Tensor, ...]:
    """What :func:`composite` gives, then the entropies of prior and posterior in nats, without gradient.

    Five outputs ``[n]``.
    """
    prior, posterior = (torch.log_softmax(part, dim=-1) for part in logits)
    p, q = prior.exp(), posterior.exp()
    entropies = [-torch.linalg.vecdot(at.detach(), logs.detach()) for at, logs in ((p, prior), (q, posterior))]
    m = 0.5 * (p + q)
    del q  # as large as all the others, and of no more use
    kl = kl_of_probabilities(prior, p, m, detach_reference=detach_reference)
    return _at(prior, targets), _at(posterior, targets), kl, *entropies


def log_prob_entropy(logits: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probs of the targets, entropy in nats), each ``[n]``, under the one context that is read."""
    (single,) = logits
    logs = torch.log_softmax(single, dim=-1)
    return _at(logs, targets), _entropy(logs)


def log_prob_reverse_kl(logits: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log π, entropy of π, exact KL(π‖π_ref)), each ``[n]``, for contexts (policy, reference)."""
    policy, reference = (torch.log_softmax(part, dim=-1) for part in logits)
    return _at(policy, targets), _entropy(policy), reverse_kl(policy, reference)


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def _at(log_probs: Tensor, targets: Tensor) -> Tensor:
    return log_probs.gather(-1, targets[:, None])[:, 0]


def apply_head(
    head: Head, hidden: Sequence[Tensor], targets: Tensor, project: Sequence[Projection], chunk: int
) -> tuple[Tensor, ...]:
    """Apply ``head`` to ``hidden`` (``[N, D]`` for each context) in chunks of ``chunk`` positions.

    Returns the head's outputs, each ``[N]``. Gradients flow into the hidden states and the projections' weights
    and biases; in the backward pass they are those of the unchunked computation, summed chunk by chunk.
    """
    parts = list({id(p): p for p in project}.values())  # contexts of one model share its projection
    use = tuple(next(i for i, part in enumerate(parts) if part is p) for p in project)
    learned = [t for p in parts for t in (p.weight, p.bias) if t is not None]
    return _Chunked.apply(_Plan(head, tuple(parts), use, chunk), targets, *hidden, *learned)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What does not change between chunks: ``parts[use[c]]`` projects the hidden states of context ``c``."""

    head: Head
    parts: tuple[Projection, ...]
    use: tuple[int, ...]
    chunk: int

    def of_contexts(self, learned: Sequence[Tensor | None]) -> list[tuple[Tensor | None, Tensor | None]]:
        """Of each context, which of ``learned`` stand for its weight and its bias; contexts of one part share them."""
        remaining = iter(learned)
        pairs = [
            (None if p.weight is None else next(remaining), None if p.bias is None else next(remaining))
            for p in self.parts
        ]
        return [pairs[i] for i in self.use]

    def projections(self, learned: Sequence[Tensor]) -> list[Projection]:
        """Of each context, with these weights and biases, ready for chunks; contexts of one part share one."""
        pairs = dict(zip(self.use, self.of_contexts(learned), strict=True))
        ready = {i: replace(self.parts[i], weight=w, bias=b).prepared() for i, (w, b) in pairs.items()}
        return [ready[i] for i in self.use]

    def buffers(self, project: Sequence[Projection], length: int) -> list[Tensor | None]:
        """Of each context, room for the product of a chunk, which all chunks use."""
        return [p.buffer(min(self.chunk, length)) for p in project]

    def slices(self, length: int) -> list[slice]:
        return [slice(start, min(start + self.chunk, length)) for start in range(0, max(length, 1), self.chunk)]


class _Chunked(torch.autograd.Function):
    """Computes each chunk's logits again in the backward pass instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, targets: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(targets, *tensors)
        hidden, learned = tensors[: len(plan.use)], tensors[len(plan.use) :]
        project, found = plan.projections(learned), []
        buffers = plan.buffers(project, len(targets))
        for at in plan.slices(len(targets)):
            products, asked = (
                [p.product(h[at], b) for p, h, b in zip(project, hidden, buffers, strict=True)],
                targets[at],
            )
            blocks = [
                plan.head([p.logits(product[rows]) for p, product in zip(project, products, strict=True)], asked[rows])
                for rows in _blocks(products[0])
            ]
            found.append([torch.cat(column) for column in zip(*blocks, strict=True)])  # no views of what is overwritten
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        plan, (targets, *tensors) = ctx.plan, ctx.saved_tensors
        contexts = len(plan.use)
        totals = [torch.zeros_like(t) if t.requires_grad else None for t in tensors]
        project, shared = plan.projections(tensors[contexts:]), plan.of_contexts(totals[contexts:])
        found = [_Total(p, *s, h) for p, s, h in zip(project, shared, totals[:contexts], strict=True)]
        buffers = plan.buffers(project, len(targets))
        for at in plan.slices(len(targets)):
            hidden = tensors[:contexts]
            products = [p.product(h[at], b).detach() for p, h, b in zip(project, hidden, buffers, strict=True)]
            _add_chunk(plan.head, at, targets, hidden, products, grads, found)
        return None, None, *totals


@dataclass(frozen=True, slots=True)
class _Total:
    """A context's projection, and the sums of gradients that its chunks are added to, where they are wanted."""

    project: Projection
    weight: Tensor | None  # [V, D]
    bias: Tensor | None  # [V]
    hidden: Tensor | None  # [N, D]

    @property
    def wanted(self) -> bool:
        return any(total is not None for total in (self.weight, self.bias, self.hidden))

    def add(self, at: slice, hidden: Tensor, grad: Tensor) -> None:
        """Add what the gradient of a chunk's product, ``[n, V]``, comes to; ``hidden`` is ``[n, D]``.

        On a CPU a weight's gradient is never whole beside its sum. Where the two are of different types it is made and
        added some rows at a time, which stay in the processor's cache. Elsewhere each of these would be a launch; there
        it is one product.
        """
        weight = self.project.weight
        if self.hidden is not None:
            self.hidden[at].add_(grad if weight is None else grad @ weight)
        if self.bias is not None:
            self.bias.add_(grad.sum(dim=0))
        if self.weight is not None:
            seen = hidden.to(grad.dtype)
            for rows in _weight_rows(self.weight, grad):
                _add_product(self.weight[rows], grad[:, rows].T, seen)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, in one operation where the dtypes are one."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _weight_rows(total: Tensor, grad: Tensor) -> list[slice]:
    """Rows of a weight's gradient ``[V, D]`` that are made at a time.

    All of them where launching is what costs, and where a product can be added in one operation.
    """
    count = len(total)
    if total.dtype == grad.dtype or not has_caches(total):
        return [slice(0, count)]
    rows = max(1, ROWS_ELEMENTS // total.shape[1])
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


ROWS_ELEMENTS = 2**20
"""Of a weight's gradient that are made at a time on a CPU: 4 MiB in float32."""


def _add_chunk(
    head: Head,
    at: slice,
    targets: Tensor,
    hidden: Sequence[Tensor],
    products: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    totals: Sequence[_Total],
) -> None:
    """Add one chunk's gradients to ``totals``; hidden states own their slice, weights share one sum.

    Each block of a product that a weight made gives way to its gradient.
    """
    project = [t.project for t in totals]
    live = [i for i, total in enumerate(totals) if total.wanted]
    asked, given = targets[at], [None if grad is None else grad[at] for grad in grads]
    gradients = {i: products[i] if project[i].weight is not None else torch.empty_like(products[i]) for i in live}
    for rows in _blocks(products[0]):
        parts = [product[rows] for product in products]
        weights = [None if grad is None else grad[rows] for grad in given]
        for i, grad in zip(live, _gradients(head, project, parts, live, asked[rows], weights), strict=True):
            if grad is None:
                gradients.pop(i, None)
            else:
                gradients[i][rows] = grad
    for i, grad in gradients.items():
        totals[i].add(at, hidden[i][at], grad)


def _gradients(
    head: Head,
    project: Sequence[Projection],
    products: Sequence[Tensor],
    live: Sequence[int],
    targets: Tensor,
    grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Gradients in the products ``[n, V]`` of the contexts ``live``; None where nothing wanted depends on one."""
    leaves = [product.detach().requires_grad_(i in live) for i, product in enumerate(products)]
    with torch.enable_grad():
        logits = [p.logits(leaf) for p, leaf in zip(project, leaves, strict=True)]
    named = _of_composite(head)
    if named is not None:
        logs = [torch.log_softmax(part.detach(), dim=-1) for part in logits]
        found = composite_gradient(logs[0], logs[1], targets, (grads[0], grads[1], grads[2]), **named)
        wanted = [(logits[i], found[i]) for i in live]
    else:
        with torch.enable_grad():
            outputs = head(logits, targets)
        wanted = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
    return torch.autograd.grad(
        [out for out, _ in wanted], [leaves[i] for i in live], [grad for _, grad in wanted], allow_unused=True
    )


def _of_composite(head: Head) -> dict[str, bool] | None:
    """The settings of a composite head, whose gradient has a closed form; None of another one."""
    function, named = (head.func, head.keywords) if isinstance(head, partial) else (head, {})
    return dict(named) if function in (composite, composite_entropy) else None


def has_caches(tensor: Tensor) -> bool:
    """Whether small parts are fast because they stay in a core's cache, and not slow because each is a launch."""
    return tensor.device.type == "cpu"


BLOCK_ELEMENTS = 2**17
"""Of a block of logits, for each thread: half a MiB in float32, so that a head's few copies fit a core's cache."""


def _blocks(product: Tensor) -> list[slice]:
    """Rows of a chunk ``[n, V]`` that a head is applied to at a time; all of them where launching is what costs."""
    count = len(product)
    if not has_caches(product):
        return [slice(0, count)]
    rows = max(1, BLOCK_ELEMENTS // product.shape[1]) * torch.get_num_threads()
    return [slice(start, min(start + rows, count)) for start in range(0, max(count, 1), rows)]
