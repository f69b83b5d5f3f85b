"""What a step's matrix products alone cost, at rates measured here and now: no code that does the work is faster.

``python -m speed.floor '{"workload": "M-34", "threads": 1}'`` prints them as one JSON line.
"""

from __future__ import annotations

import time

from speed.meter import asked, emit
from speed.workloads import Workload, workload_of


def floor_seconds(workload: Workload, threads: int) -> float:
    """CPU seconds of the linear layers of one GRPO step, each prompt read once, each response token once.

    Sampling reads every prompt once and decodes all rows side by side; training goes forward and backward (three
    times the products of a forward) over each prompt once and every response. Both at the faster of float32 and
    bfloat16. Attention, norms, the optimizer and everything that is not a matrix product are left out.
    """
    import torch

    torch.set_num_threads(threads)
    hidden, key = workload.hidden, workload.hidden * workload.heads[1] // workload.heads[0]
    inner = workload.inner or hidden * 11 // 4
    shapes = [(hidden, hidden)] * 2 + [(hidden, key)] * 2 + [(hidden, inner)] * 2 + [(inner, hidden)]
    prompts, responses = workload.problems * workload.prompt, workload.rows * workload.mean_length

    def cost(tokens: float, side_by_side: int) -> float:
        body = sum(
            _seconds(side_by_side, *shape) for shape in dict.fromkeys(shapes) for _ in range(shapes.count(shape))
        )
        return workload.layers * body * tokens / side_by_side

    def head(tokens: float, side_by_side: int) -> float:
        return _seconds(side_by_side, hidden, workload.vocabulary) * tokens / side_by_side

    decoding = cost(responses, workload.rows) + head(responses, workload.rows)
    prefill, training = cost(prompts, 1024), 3 * (cost(prompts + responses, 1024) + head(responses, 1024))
    return decoding + prefill + training


_MEASURED: dict[tuple[int, int, int], float] = {}


def _seconds(rows: int, inner: int, outer: int) -> float:
    """CPU seconds of one product ``[rows, inner] x [inner, outer]``, in the faster dtype; the least of five."""
    import torch

    if (rows, inner, outer) not in _MEASURED:
        found = []
        for dtype in (torch.float32, torch.bfloat16):
            a, w = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
            torch.nn.functional.linear(a, w)
            count = max(1, round(2e9 / (2 * rows * inner * outer)))
            for _ in range(5):
                begun = time.process_time()
                for _ in range(count):
                    torch.nn.functional.linear(a, w)
                found.append((time.process_time() - begun) / count)
        _MEASURED[rows, inner, outer] = min(found)
    return _MEASURED[rows, inner, outer]


if __name__ == "__main__":
    given = asked()
    emit({"seconds": floor_seconds(workload_of(given), given["threads"])})
