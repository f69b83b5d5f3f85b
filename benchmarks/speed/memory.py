"""What a GRPO step takes over model, gradients and optimizer at a vocabulary of 151,936, ours against TRL's.

TRL is tried with each micro-batch that fits, we with several sizes of a pass; the fastest and the smallest setting of
both are shown. What is subtracted is said in :class:`speed.meter.Meter`. Apart from that our largest tensor with a
vocabulary axis is looked for, by watching every result of torch in one step, for a small and for the wide vocabulary:
``training.logits_mb_per_chunk`` bounds it in scoring and training whatever the vocabulary. In sampling the model's
own logits have a row for each response, and what tokens are drawn from is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from speed.meter import asked, begin, emit
from speed.processes import Bench, WorkerError, free_mb, spread
from speed.step import named, unfit
from speed.workloads import WORKLOADS, workload_of

WORKLOAD = "M-wide"
VOCABULARIES = ("M-34", "M-wide")
PEERS = tuple(
    {"dtype": dtype, "micro": micro, "attention": "sdpa"}
    for dtype, micro in (("mixed", 8), ("mixed", 16), ("mixed", 64))
)
OURS = (
    {"dtype": "mixed"},
    {"dtype": "mixed", "settings": {"training": {"tokens_per_pass": 2048}}},
    {"dtype": "mixed", "settings": {"training": {"tokens_per_pass": 1024}}},
)
SHOWN = ("ours_fastest", "ours_smallest", "peer_fastest", "peer_smallest")


@dataclass
class Tried:
    """A setting of one side, and what its processes found."""

    side: str
    settings: Mapping[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """What it takes: spreads over its runs, and their median CPU seconds."""
        memory = {name: spread([run[name] for run in self.runs]) for name in ("step_mb", "peak_mb", "loaded_mb")}
        held = {name: self.runs[0][name] for name in ("gradients_mb", "optimizer_mb")}
        cpu = median(median(run["cpu"]) for run in self.runs)
        return {"settings": self.settings, "runs": len(self.runs), "cpu": cpu, **memory, **held}


def measure(bench: Bench) -> dict[str, Any]:
    """Memory and CPU seconds of each side's settings, and our largest tensors with a vocabulary axis.

    Every setting is tried once; the fastest and the smallest of each side are then measured again, in turn.
    """
    workload = WORKLOADS[WORKLOAD]
    model = bench.model(workload)

    def run(one: Tried) -> None:
        task = {"workload": WORKLOAD, "model": model, "steps": 1, **one.settings}
        one.runs.append(bench.worker(one.side, peer=one.side == "peer", **task))

    tried: list[Tried] = []
    left_out = []
    for one in [*(Tried("ours", s) for s in OURS), *(Tried("peer", s) for s in PEERS)]:
        why = unfit(workload, one.settings, free_mb())
        try:
            if not why:
                run(one)
                tried.append(one)
        except WorkerError as error:
            why = str(error)
        if why:
            left_out.append({**one.settings, "why": why})
    if {one.side for one in tried} != {"ours", "peer"}:
        raise WorkerError(str(left_out))
    again = [one for side in ("ours", "peer") for one in fastest_and_smallest([t for t in tried if t.side == side])]
    for _ in range(bench.repeats - 1):
        for one in again:
            run(one)
    largest = {
        name: bench.worker("memory", workload=name, model=bench.model(WORKLOADS[name]), dtype="float32")
        for name in VOCABULARIES
    }
    sides = {side: [one.figures() for one in again if one.side == side] for side in ("ours", "peer")}
    every = [{"side": one.side, **one.figures()} for one in tried]
    return {"workload": WORKLOAD, "all": every, "left_out": left_out, **chosen(sides), "largest": largest}


def fastest_and_smallest(tried: Sequence[Tried]) -> list[Tried]:
    """Those two, which may be the same."""
    fastest = min(tried, key=lambda one: one.figures()["cpu"])
    smallest = min(tried, key=lambda one: one.figures()["step_mb"][0])
    return [fastest] if smallest is fastest else [fastest, smallest]


def chosen(sides: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Each side's fastest and smallest setting, and TRL's memory over ours for both."""
    found: dict[str, Any] = {}
    for side, tried in sides.items():
        found[f"{side}_fastest"] = min(tried, key=lambda one: one["cpu"])
        found[f"{side}_smallest"] = min(tried, key=lambda one: one["step_mb"][0])
    ratios = {
        f"ratio_{which}": found[f"peer_{which}"]["step_mb"][0] / found[f"ours_{which}"]["step_mb"][0]
        for which in ("fastest", "smallest")
    }
    return found | ratios


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    rows = []
    for name in SHOWN:
        one = found[name]
        rows.append(
            f"{name} {named(one['settings'])}: {one['step_mb'][0]:,.0f} MiB a step over model, gradients and optimizer "
            f"({one['gradients_mb']:,.0f} + {one['optimizer_mb']:,.0f} MiB), peak {one['peak_mb'][0]:,.0f} MiB, "
            f"{one['cpu']:.1f} CPU seconds"
        )
    for one in found["left_out"]:
        rows.append(f"left out: {one}")
    for name, one in found["largest"].items():
        sizes = ", ".join(f"{phase} {v['mb']:,.1f} MiB {v['shape']}" for phase, v in one["largest"].items())
        rows.append(f"{name}, vocabulary {one['vocabulary']:,}: largest logits: {sizes}; bound {one['bound_mb']} MiB")
    ratios = ", ".join(f"{which} {found[f'ratio_{which}']:.2f}" for which in ("fastest", "smallest"))
    return [*rows, f"memory of a step, TRL / ours: {ratios} (goal: above 1)"]


def watch(vocabulary: int, hidden: int) -> Any:
    """A mode that keeps, for each phase of the loop, the largest result with the vocabulary as its last axis.

    A weight's gradient ``[hidden, vocabulary]`` is not counted, nor is a view of a weight.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.phase = "other"
            self.largest: dict[str, tuple[int, list[int], str]] = {}

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for part in tree_leaves(result):
                if isinstance(part, torch.Tensor) and part.ndim > 1 and part.shape[-1] == vocabulary:
                    size = part.numel() * part.element_size()
                    weight = tuple(part.shape[-2:]) == (hidden, vocabulary)
                    if not weight and size > self.largest.get(self.phase, (0,))[0]:
                        self.largest[self.phase] = size, list(part.shape), str(part.dtype).removeprefix("torch.")
            return result

    return Watch()


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """One step of ours, watched."""
    from collections.abc import Generator
    from contextlib import contextmanager

    from covrl.training import step
    from speed.ours import build_run

    begin(asked["threads"], asked.get("memory_mb"))
    workload = workload_of(asked)
    run = build_run(workload, asked["model"], asked["dtype"])
    mode = watch(workload.vocabulary, workload.hidden)

    class Phases(step.Clock):
        @contextmanager
        def __call__(self, phase: str) -> Generator[None]:
            before, mode.phase = mode.phase, phase
            with super().__call__(phase):
                yield
            mode.phase = before

    step.Clock = Phases
    with mode:
        step.take_step(run)
    sizes = {
        phase: {"mb": size / 2**20, "shape": shape, "dtype": dtype}
        for phase, (size, shape, dtype) in mode.largest.items()
    }
    bound = run.limits.logits_bytes >> 20
    return {"vocabulary": workload.vocabulary, "bound_mb": bound, "largest": sizes}


if __name__ == "__main__":
    emit(main(asked()))
