"""What single operations of a step cost in the two ways that docs/performance.md compares; CPU seconds of one thread.

    python benchmarks/operations.py

The sizes are those of SmolLM2-135M: 576 wide, a vocabulary of 49,152. The least of some repeats, so that other work on
the machine counts little. In a minute, without a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from covrl.config import TrainingConfig
from covrl.training.optimizer import make_optimizer

WIDTH, INNER, VOCABULARY, CHUNK, ROWS = 576, 1536, 49_152, 341, 64


def least(work: Callable[[], object], repeats: int = 5) -> float:
    """CPU seconds of the fastest of some repeats, after one that is not counted."""
    work()
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


def rate(work: Callable[[], object], rows: int, inner: int = WIDTH, outer: int = VOCABULARY) -> str:
    """Of a product of these sizes."""
    return f"{2 * rows * inner * outer / least(work) / 1e9:.0f} GFLOP/s"


def output_layer() -> None:
    """The product of a chunk, and a weight's gradient."""
    hidden, weight = torch.randn(CHUNK, WIDTH), torch.randn(VOCABULARY, WIDTH)
    buffer, total = torch.empty(CHUNK, VOCABULARY), torch.zeros(VOCABULARY, WIDTH)

    def by_rows() -> None:
        for sums, part in zip(total.split(2**20 // WIDTH), buffer.split(2**20 // WIDTH, dim=1), strict=True):
            sums.add_(part.T @ hidden)

    print("product of the output layer, new memory:", rate(lambda: hidden @ weight.T, CHUNK))
    print("  into a buffer:", rate(lambda: torch.mm(hidden, weight.T, out=buffer), CHUNK))
    print("gradient of its weight, made and added:", rate(by_rows, CHUNK))
    print("  added by the product:", rate(lambda: total.addmm_(buffer.T, hidden), CHUNK))


def drawing() -> None:
    """The cumulative distributions that a token of each row is drawn from."""
    log_probs = torch.log_softmax(torch.randn(ROWS, VOCABULARY), dim=-1)
    copies = least(lambda: log_probs.double().exp().cumsum(dim=-1))
    in_place = least(lambda: log_probs.to(torch.float64, copy=True).exp_().cumsum_(dim=-1))
    print(f"cumulative distributions of {ROWS} rows, by copies: {1000 * copies:.0f} ms")
    print(f"  in place: {1000 * in_place:.0f} ms")


def optimizer() -> None:
    """A step of AdamW, fused and not."""
    parameters = [torch.nn.Parameter(torch.randn(INNER, WIDTH)) for _ in range(20)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    fused = make_optimizer(parameters, TrainingConfig())
    plain = torch.optim.AdamW(parameters, fused=False)
    count = sum(p.numel() for p in parameters) / 1e6
    for name, one in (("each operation alone", plain), ("fused", fused)):
        print(f"AdamW of {count:.1f} M parameters, {name}: {1000 * least(one.step):.0f} ms")


def packed() -> None:
    """A product of decoding with plain weights, and with weights packed for oneDNN; many, so that none is in cache."""
    rows, weights = torch.randn(ROWS, WIDTH), [torch.randn(INNER, WIDTH) for _ in range(12)]
    ready = [torch.ops.mkldnn._reorder_linear_weight(w, ROWS) for w in weights]
    size = (ROWS, WIDTH, INNER * len(weights))
    print("decoding, plain weights:", rate(lambda: [torch.nn.functional.linear(rows, w) for w in weights], *size))
    use = torch.ops.mkldnn._linear_pointwise
    print("  packed:", rate(lambda: [use(rows, w, None, "none", [], "") for w in ready], *size))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in (output_layer, drawing, optimizer, packed):
        part()
