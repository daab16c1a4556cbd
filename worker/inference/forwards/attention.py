"""Attention over packed rows, each of which sees itself alone. Shared by every packed family.

On CUDA in half precision it is `torch.nn.attention.varlen` (FlashAttention over cumulative lengths). Elsewhere it is
`scaled_dot_product_attention` over runs of rows of equal length, which the engine's length order makes long; where
oneDNN multiplies, in windows of whole AMX tiles (`Run`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

# The rows of an AMX tile, and the fewest tokens for which torch's attention packs its operands into tiles at all.
_TILE = 16
_FEWEST_IN_TILES = 64


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` rows of ``length`` tokens each, one behind the other, from token ``start`` on; row ``first`` leads.

    Attention looks at each row through a window of ``width`` tokens that begins with the row. The window may reach into
    the rows behind it: their keys are masked, and what their queries see is dropped. torch's attention in bfloat16
    takes 3.0 us of an AMX core for a token of a row of 63 tokens, 4.5 us for one of 127; with one token more, when all
    tiles are whole, 1.4 and 1.9 us. Copied and padded rows would cost what the whole tiles save.
    """

    count: int
    length: int
    start: int
    first: int
    width: int

    def mask(self, like: Tensor) -> Tensor | None:
        """What to add to the scores of each query, (count, 1, 1, width), so that it sees its own row only."""
        if self.width == self.length:
            return None
        mask = like.new_zeros(self.width)
        mask[self.length :] = -torch.inf
        return mask.expand(self.count, 1, 1, -1)


def runs(lengths: Sequence[int], *, tokens: int) -> list[Run]:
    """The runs of rows of these lengths.

    Args:
        lengths: tokens of each row.
        tokens: the length of the sequence. Windows are whole tiles where that is faster and they end within it; with 0
            every window is its row.
    """
    found = []
    start = first = 0
    for length, rows in groupby(lengths):
        count = len(list(rows))
        width = -(-length // _TILE) * _TILE if length >= _FEWEST_IN_TILES * 3 // 4 else length
        end = start + count * length
        if end - length + width > tokens:
            width = length
        found.append(Run(count, length, start, first, width))
        start, first = end, first + count
    return found


class RowAttention:
    """Attention within each row of one packed sequence.

    Args:
        bounds: (rows + 1,), int32, cumulative lengths: row ``i`` is ``bounds[i]:bounds[i + 1]``.
        runs: of these rows.
        spare_rows: rows of no message that follow; the sequence's first token stands in for theirs.
        varlen: whether the device has `varlen_attn`.

    Attributes:
        bounds: as given.
        first: (rows + spare rows,), the index of each row's first token.
    """

    def __init__(self, bounds: Tensor, runs: Sequence[Run], *, spare_rows: int, varlen: bool) -> None:
        self.bounds = bounds
        self.first = torch.cat([bounds[:-1], bounds.new_zeros(spare_rows)]) if spare_rows else bounds[:-1]
        self._runs = runs
        self._longest = max(run.length for run in runs)
        self._varlen = varlen

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, first_only: bool) -> Tensor:
        """Attend: (tokens, heads, head size) each; with ``first_only`` the queries are those of `first`.

        Returns:
            The shape of ``query``; zeros for spare tokens and rows.
        """
        if self._varlen:
            return self._attend_varlen(query, key, value, first_only=first_only)
        context = query.new_zeros(query.shape)
        for run in self._runs:
            if first_only:
                at, own, width, mask = run.first, 1, run.length, None
                queries = _windows(query, at, run.count, own, own)
            else:
                at, own, width, mask = run.start, run.length, run.width, run.mask(query)
                queries = _windows(query, at, run.count, own, width)
            keys, values = (_windows(x, run.start, run.count, run.length, width) for x in (key, value))
            seen = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
            # (count, heads, width, size) -> (count * own, heads, size).
            rows = context[at : at + run.count * own].view(run.count, own, *query.shape[1:])
            rows.copy_(seen[:, :, :own].transpose(1, 2))
        return context

    def _attend_varlen(self, query: Tensor, key: Tensor, value: Tensor, *, first_only: bool) -> Tensor:
        query_bounds, longest_query = self.bounds, self._longest
        if first_only:
            query_bounds = torch.arange(len(self.bounds), dtype=torch.int32, device=self.bounds.device)
            longest_query = 1
        attended = varlen_attn(query, key, value, query_bounds, self.bounds, longest_query, self._longest)
        return attended if isinstance(attended, Tensor) else attended[0]


def _windows(x: Tensor, start: int, count: int, length: int, width: int) -> Tensor:
    """Views of ``width`` tokens, ``length`` apart: (tokens, heads, size) -> (count, heads, width, size)."""
    end = start + (count - 1) * length + width
    return x[start:end].unfold(0, width, length).transpose(2, 3)
