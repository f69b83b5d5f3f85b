"""How a GRPO step's time grows with problems, rollouts and the prompt's length, on the small model of workload S.

One setting grows while the others stay at 8 problems, 8 rollouts and 32 prompt tokens; responses have 64 tokens. The
exponent is the slope of the least-squares line through the logarithms of size and CPU seconds. What a step costs
whatever its size makes it small at small sizes, so the exponent between the two largest sizes is given too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from speed.fit import exponent
from speed.meter import asked, begin, emit
from speed.processes import Bench, spread
from speed.workloads import WORKLOADS, workload_of

WORKLOAD = "S"
BASE = {"problems": 8, "rollouts": 8, "prompt": 32}
SIZES: dict[str, tuple[int, ...]] = {
    "problems": (2, 4, 8, 16, 32),
    "rollouts": (2, 4, 8, 16),
    "prompt": (32, 128, 512),
}
GOALS = {"problems": 1.1, "rollouts": 1.1, "prompt": 1.0}


def measure(bench: Bench) -> dict[str, Any]:
    """CPU seconds of a step at each size, and each setting's exponent."""
    model = bench.model(WORKLOADS[WORKLOAD])
    task: dict[str, Any] = {"workload": WORKLOAD, "model": model, "dtype": "float32"}
    runs = [bench.worker("growth", **task) for _ in range(bench.repeats)]
    grown = {}
    for name, sizes in SIZES.items():
        seconds = [spread([run[name][i] for run in runs]) for i in range(len(sizes))]
        middle = [one[0] for one in seconds]
        powers = {"exponent": exponent(sizes, middle), "last_exponent": exponent(sizes[-2:], middle[-2:])}
        grown[name] = {"sizes": list(sizes), "cpu": seconds, **powers, "goal": GOALS[name]}
    return {"workload": WORKLOAD, "base": BASE, "grown": grown}


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    rows = []
    for name, one in found["grown"].items():
        cells = ", ".join(f"{size}: {v[0]:.3f} s" for size, v in zip(one["sizes"], one["cpu"], strict=True))
        than = "below" if name == "prompt" else "at most"
        powers = f"exponent {one['exponent']:.2f}, at the end {one['last_exponent']:.2f}"
        rows.append(f"{name} {cells}; {powers} (goal: {than} {one['goal']})")
    return rows


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """The median CPU seconds of a step at each size."""
    from speed.dash import seconds_of
    from speed.ours import build_run

    begin(asked["threads"], asked.get("memory_mb"))
    steps = asked.get("steps", 3)
    found: dict[str, list[float]] = {}
    for name, sizes in asked.get("sizes", SIZES).items():
        found[name] = []
        for size in sizes:
            workload = replace(workload_of(asked), **(BASE | {name: size}))
            run = build_run(workload, asked["model"], asked["dtype"], steps=steps + 1)
            found[name].append(median(seconds_of(run, steps)))
    return found


STYLE = """
text { font: 12px system-ui, sans-serif; fill: #555; }
.name { font-weight: 600; fill: #222; }
.grid line { stroke: #ddd; }
path { fill: none; stroke: #2f6fb5; stroke-width: 2.2; }
circle { fill: #2f6fb5; }
.linear { stroke: #999; stroke-width: 1; stroke-dasharray: 4 4; }
@media (prefers-color-scheme: dark) {
  text { fill: #aaa; } .name { fill: #eee; } .grid line { stroke: #333; } .linear { stroke: #777; }
  path { stroke: #7db3f0; } circle { fill: #7db3f0; }
}
"""
HEAD = 40


def plot(found: Mapping[str, Any]) -> str:
    """The three courses as one SVG file, both axes in logarithms; a dashed line is proportional to the size."""
    from covrl.reporting.charts import HEIGHT, WIDTH, drawing, element

    panels = [
        element("g", _panel(name, one), transform=f"translate({i * WIDTH} 0)")
        for i, (name, one) in enumerate(found["grown"].items())
    ]
    return drawing("CPU seconds of a step against its size", STYLE, panels, WIDTH * len(panels), HEIGHT + HEAD)


def _panel(name: str, one: Mapping[str, Any]) -> list[Any]:
    from covrl.reporting.charts import LEFT, Frame, element, grid, path
    from covrl.reporting.scales import Axis

    sizes, seconds = one["sizes"], [v[0] for v in one["cpu"]]
    proportional = [seconds[0] * size / sizes[0] for size in sizes]
    ticks = round_numbers(min(*seconds, *proportional), max(*seconds, *proportional))
    at = [math.log2(size) for size in sizes]
    frame = Frame(at[0], at[-1], Axis(ticks[0], ticks[-1], tuple(ticks), log=True))
    points = list(zip(at, seconds, strict=True))
    parts = [
        grid(frame, "", lambda place: str(round(2**place)), at),
        path(frame, list(zip(at, proportional, strict=True)), class_="linear"),
        path(frame, points),
        *(element("circle", cx=frame.x(x), cy=frame.y(y), r=3.2) for x, y in points),
    ]
    label = {"prompt": "tokens of a prompt"}.get(name, name)
    powers = f"exponent {one['exponent']:.2f}, at the end {one['last_exponent']:.2f}"
    return [
        element("text", f"CPU seconds of a step against {label}", class_="name", x=LEFT, y=16),
        element("text", f"{powers}; dashed: proportional to the size", x=LEFT, y=32),
        element("g", parts, transform=f"translate(0 {HEAD})"),
    ]


def round_numbers(low: float, high: float) -> Sequence[float]:
    """1, 2 and 5 times powers of ten, from the last at or below ``low`` to the first at or above ``high``.

    Example:
        >>> round_numbers(0.3, 4)
        [0.2, 0.5, 1.0, 2.0, 5.0]
    """
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    every = [float(f"{m}e{p}") for p in powers for m in (1, 2, 5)]
    first = max(i for i, v in enumerate(every) if v <= low)
    last = min(i for i, v in enumerate(every) if v >= high)
    return every[first : last + 1]


if __name__ == "__main__":
    emit(main(asked()))
