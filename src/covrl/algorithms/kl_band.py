"""Keeping a KL in a band: β, α or both move a little after every step whose KL lies outside.

    KL above the band    β ← β·f         α ← α + d        a heavier penalty; more traces that the prior draws itself
    KL below the band    β ← β/f         α ← α − d        a lighter penalty; more traces that see the answer
    inside               unchanged

β stays within a factor of 100 of where it began, α between 0.1 and 0.9.

Evidence: CoVRL's authors name adaptive β and α as future work, without a form. INFERRED, ours: all of it. The rule for
β is that of adaptive KL control in fine-tuning from preferences (Ziegler et al., arXiv 1909.08593), with a band for its
target and a fixed factor for its proportional one.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Adapts = Literal["beta", "alpha", "both"]

FACTOR = 1.1
"""f: β's change a step, so that ten steps move it by 2.6."""

SHIFT = 0.02
"""d: α's change a step."""

MOST = 100.0
"""How far β may move from its beginning, as a factor."""

LEAST_ALPHA, MOST_ALPHA = 0.1, 0.9


class Steering(NamedTuple):
    """What is steered: β of the KL, and the share α of traces from the prior."""

    beta: float
    alpha: float


def steered(now: Steering, begun: Steering, kl: float, band: tuple[float, float], adapts: Adapts) -> Steering:
    """The values for the next step, after one whose KL was ``kl``; unchanged where that is not a number.

    Example:
        >>> steered(Steering(1.0, 0.5), Steering(1.0, 0.5), kl=0.3, band=(0.05, 0.2), adapts="beta")
        Steering(beta=1.1, alpha=0.5)
    """
    if math.isnan(kl) or band[0] <= kl <= band[1]:
        return now
    up = 1 if kl > band[1] else -1
    beta, alpha = now.beta * FACTOR**up, now.alpha + SHIFT * up
    return Steering(
        min(max(beta, begun.beta / MOST), begun.beta * MOST) if adapts != "alpha" else now.beta,
        min(max(alpha, LEAST_ALPHA), MOST_ALPHA) if adapts != "beta" else now.alpha,
    )
