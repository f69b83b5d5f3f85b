"""Values of prefixes, from the responses of one group alone: the share of reward that follows each prefix.

    V(s) = mean reward of the group's responses whose tokens begin with s;  V(no token) = the group's mean

Source: TEMPO (arXiv 2509.18314), CONFIRMED in its code, which walks a tree; TVM labels tokens with the same numbers.
Two responses share a prefix while all their ids so far are equal, the end-of-sequence id among them: a response that
has ended matches none that goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prefix_values(ids: Sequence[Sequence[int]], rewards: Sequence[float]) -> list[Tensor]:
    """V before the first token and after each token of every response: ``[T_i + 1]`` each, in float64.

    Compares all pairs at each position, O(G²T); from where no two responses are alike any more, V is the reward.

    Example:
        >>> prefix_values([(1, 2), (1, 3), (4, 4)], [1.0, 0.0, 0.0])[0]
        tensor([0.3333, 0.5000, 1.0000], dtype=torch.float64)
    """
    if not ids:
        return []
    own = torch.tensor(rewards, dtype=torch.float64)
    table = torch.full((len(ids), max(map(len, ids))), -1)  # no id: ended
    for row, tokens in zip(table, ids, strict=True):
        row[: len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    alike = torch.ones(len(ids), len(ids), dtype=torch.bool)
    found = own[:, None].repeat(1, table.shape[1] + 1)
    found[:, 0] = own.mean()
    for t, column in enumerate(table.T, start=1):
        alike &= column[:, None] == column[None, :]
        if int(alike.sum()) == len(ids):
            break
        share = alike.double()
        found[:, t] = (share @ own) / share.sum(dim=1)
    return [row[: len(tokens) + 1] for row, tokens in zip(found, ids, strict=True)]
