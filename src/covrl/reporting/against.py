"""The training reward and verified held-out accuracy in one drawing, each with its own scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup

from covrl.records import StepReport
from covrl.reporting.catalogue import LEARNING, ChartSpec
from covrl.reporting.charts import (
    NOTHING,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    Line,
    chart,
    draw_curve,
    element,
    grid,
    key,
    readout,
    tick_text,
    told,
)
from covrl.reporting.scales import axis, curve

SCALE = 48
"""Width of the second scale, right of the frame."""

LEAST_SCALE = 0.2
"""The accuracy's scale goes up to here at least: on a scale of 3 % noise would look like learning."""

ACCURACY = ("eval/sampled", "eval/accuracy")
REWARD = ("reward/prior", "reward/posterior")
TITLE = "Training reward against held-out accuracy"
HEALTHY = (
    "Verified answers to held-out problems (left scale) and what training pays for (right scale) rise together. Where "
    "the reward rises alone, something other than right answers earns it. Shaded: the reward watch sees the two part."
)


def against(steps: Sequence[StepReport]) -> Markup:
    """The chart as HTML; empty where no reward or no verified accuracy was reported."""
    names = [next((n for n in some if any(n in s.metrics for s in steps)), "") for some in (ACCURACY, REWARD)]
    if not all(names):
        return NOTHING
    accuracy = Line("held-out accuracy", "s-0", curve(steps, names[0]))
    reward = Line("training reward", f"s-{names[1].partition('/')[2]}", curve(steps, names[1]))
    if not (accuracy.curve.points and reward.curve.points):
        return NOTHING
    ends = steps[0].step, steps[-1].step
    left = Frame(*ends, axis([*accuracy.curve.values(), LEAST_SCALE], zero=True, most=1.0))
    right = Frame(*ends, axis(v for p in reward.curve.points for v in (p.low, p.high)))
    body = _shade(left, steps) + grid(left, "share") + _scale(right)
    body += draw_curve(right, reward) + draw_curve(left, accuracy)
    percent, plain = (ChartSpec(LEARNING, TITLE, unit, HEALTHY, ()) for unit in ("share", ""))
    data = readout(left, percent, [accuracy])
    data["series"] = [*data["series"], *readout(right, plain, [reward])["series"]]
    return chart(
        TITLE,
        f"{told(accuracy, 'share')}; {told(reward, '')}",
        body,
        unit="% and reward",
        keys=[key(accuracy, "share"), key(reward, "")],
        healthy=HEALTHY,
        readings=data,
        width=WIDTH + SCALE,
    )


def parted(steps: Sequence[StepReport]) -> Iterator[tuple[int, int]]:
    """Ranges of steps that end in an evaluation at which the watch warned, each from the evaluation before."""
    seen = [(s.step, s.metrics.get("watch/parted", 0.0)) for s in steps if any(n in s.metrics for n in ACCURACY)]
    return ((before, now) for (before, _), (now, found) in pairwise(seen) if found)


def _shade(frame: Frame, steps: Sequence[StepReport]) -> Markup:
    height = frame.floor - TOP
    return NOTHING.join(
        element("rect", class_="parted", x=frame.x(a), y=TOP, width=frame.x(b) - frame.x(a), height=height)
        for a, b in parted(steps)
    )


def _scale(frame: Frame) -> Markup:
    """The reward's ticks, in its colour, on the right."""
    edge, parts = WIDTH - RIGHT, []
    for tick in frame.axis.ticks:
        y = frame.y(tick)
        parts.append(element("line", x1=edge, x2=edge + 4, y1=y, y2=y))
        parts.append(element("text", tick_text(tick, "", log=False), x=edge + 8, y=y + 4))
    return element("g", parts, class_="scale")
