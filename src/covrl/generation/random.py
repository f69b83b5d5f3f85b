"""Counter-based random numbers: no state, so nothing to save and nothing that depends on batching.

The number of a token is a function of (run seed, step, purpose, problem id, rollout index, position). A position
counts the tokens of the trace, including those of a given prefix: continuing from the first k tokens of a trace under
the trace's own key draws the same rest again.
A 64-bit key is hashed from the first five, and position ``t`` selects the ``t``-th output of the SplitMix64
sequence started at that key (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from covrl.generation.base import Draw

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def trace_key(draw: Draw, problem_id: str, index: int) -> int:
    """The 64-bit key of one trace. Problem ids of any length and content are safe: the fields are separated."""
    text = "\x1f".join([str(draw.seed), str(draw.step), draw.purpose, str(index), problem_id])
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def uniforms(keys: NDArray[np.uint64], position: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) per key, ``[B]``, for token ``position`` (0, 1, …): one for all, or one a key ``[B]``."""
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64 by design
        z = keys + _GAMMA * (np.asarray(position, dtype=np.uint64) + np.uint64(1))
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(draw: Draw, problem_id: str, index: int) -> float:
    """A single number in [0, 1), for choices that are not tokens (which prompt a trace is drawn from)."""
    return float(uniforms(np.array([trace_key(draw, problem_id, index)], dtype=np.uint64), 0)[0])
