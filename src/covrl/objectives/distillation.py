"""Divergences of a student p from a teacher q at one position, entry by entry, and the two clips that are in use.

    forward   KL(q‖p)                        gradient at the student's logits   p − q
    reverse   KL(p‖q)                                                           p (log p/q − KL)
    jsd       ½KL(q‖m) + ½KL(p‖m),  m = ½p + ½q                                 ½ p (log p/m − KL(p‖m))

All three gradients are VERIFIED by finite differences. In nats; log-probs ``[..., V]`` are normalised already.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from covrl.objectives.composite import composite_log_prob

Divergence = Literal["forward", "reverse", "jsd"]
Clip = Literal["token", "entry", "none"]


def divergence_entries(student: Tensor, teacher: Tensor, form: Divergence) -> Tensor:
    """What each entry of the vocabulary adds to the divergence, ``[..., V]``; an entry may be negative."""
    if form == "forward":
        return teacher.exp() * (teacher - student)
    if form == "reverse":
        return student.exp() * (student - teacher)
    middle = composite_log_prob(student, teacher)
    return 0.5 * (teacher.exp() * (teacher - middle) + student.exp() * (student - middle))


def clipped_divergence(entries: Tensor, clip: Clip, limit: float) -> Tensor:
    """The sum over the vocabulary, ``[..., V]`` -> ``[...]``, with ``limit`` nats on each sum or on each entry.

    token: min(Σ_v e_v, limit), which is a bound on a divergence: a position beyond it has no gradient.
    entry: Σ_v min(e_v, limit). That is no divergence (VERIFIED): it can be below 0, which is its value at p = q, and
    its gradient then leads away from the teacher. It is what the later code of OPSD and TRL are reported to do.
    """
    if clip == "entry":
        return entries.clamp_max(limit).sum(dim=-1)
    total = entries.sum(dim=-1)
    return total.clamp_max(limit) if clip == "token" else total
