"""Rows of a matrix in blocks that share a scale: what codes of few bits need."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def blocks_of(width: int, most: int) -> int:
    """Blocks of at most so many numbers in a row of ``width``.

    Example:
        >>> blocks_of(576, 256)
        3
    """
    return -(-width // most)


def in_blocks(values: Tensor, most: int) -> Tensor:
    """[R, C] as [R, blocks, numbers of a block]; the last block of a row is filled up with 0."""
    rows, width = values.shape
    blocks = blocks_of(width, most)
    size = -(-width // blocks)
    if missing := blocks * size - width:
        values = pad(values, (0, missing))
    return values.reshape(rows, blocks, size)


def in_rows(blocks: Tensor, width: int) -> Tensor:
    """[R, blocks, numbers of a block] as [R, C]."""
    return blocks.flatten(1)[:, :width]
