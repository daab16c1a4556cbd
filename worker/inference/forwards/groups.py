"""Rows of a packed sequence as dense arrays, a group of rows at a time. For attention whose scores have a bias.

A bias differs from one pair of tokens to the next, which `torch.nn.attention.varlen` has no room for, so attention runs
on dense arrays here, on every device. The engine's order by length makes groups large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """``count`` rows of at most ``width`` tokens, of which row ``first`` leads.

    Attributes:
        first: the number of the first row.
        count: how many rows.
        width: the tokens that each has room for.
        start: where the first row's tokens begin.
        tokens: how many tokens the rows have together.
        index: (count * width,), the token that stands at each place of the dense array; behind a row's end its own last
            token, so that no row meets another's states. None: each row is ``width`` long, so tokens stand as they lie.
        back: (tokens,), the place of each token in the dense array; None as above.
        beyond: (count, 1, 1, width), whether a place is behind its row's end; None as above.
    """

    first: int
    count: int
    width: int
    start: int
    tokens: int
    index: Tensor | None
    back: Tensor | None
    beyond: Tensor | None

    def gather(self, x: Tensor) -> Tensor:
        """(all tokens, ...) to (count * width, ...), a view where tokens stand as they lie."""
        own = x[self.start : self.start + self.tokens]
        return own if self.index is None else own.index_select(0, self.index)

    def scatter(self, dense: Tensor, into: Tensor) -> None:
        """Write the group's part, (count * width, ...), to its place in (all tokens, ...)."""
        into[self.start : self.start + self.tokens] = dense if self.back is None else dense.index_select(0, self.back)


def group(
    lengths: Sequence[int], device: torch.device, *, multiple_of: int = 1, most_pairs: int | None = None
) -> list[Group]:
    """Cut rows into groups of one width each, in their order.

    Args:
        lengths: tokens of each row.
        device: where the groups' tensors shall lie.
        multiple_of: what a row's width is rounded up to. With 1 nothing is padded and nothing copied.
        most_pairs: how many pairs of a row's tokens a group may have, unless a row has more; None: any number.
    """
    groups = []
    first = start = 0
    for width, members in groupby(-(-length // multiple_of) * multiple_of for length in lengths):
        left = len(list(members))
        most = left if most_pairs is None else max(1, most_pairs // width**2)
        while left:
            count = min(left, most)
            groups.append(_group(np.array(lengths[first : first + count]), first, start, width, device))
            first, start, left = first + count, start + groups[-1].tokens, left - count
    return groups


def _group(lengths: np.ndarray, first: int, start: int, width: int, device: torch.device) -> Group:
    tokens = int(lengths.sum())
    index = back = beyond = None
    if tokens != len(lengths) * width:
        place = np.arange(width)
        within = place < lengths[:, None]
        starts = np.cumsum(lengths) - lengths
        index = torch.from_numpy((starts[:, None] + np.minimum(place, lengths[:, None] - 1)).ravel()).to(device)
        back = torch.from_numpy(np.flatnonzero(within)).to(device)
        beyond = torch.from_numpy(~within)[:, None, None, :].to(device)
    return Group(first, len(lengths), width, start, tokens, index, back, beyond)
