"""Attention over packed rows, each of which sees itself alone. Shared by every packed family.

On CUDA in half precision it is `torch.nn.attention.varlen` (FlashAttention over cumulative lengths). Elsewhere it is
`scaled_dot_product_attention` over runs of rows of equal length, which the engine's length order makes long; where
oneDNN multiplies, in windows of whole AMX tiles (`Run`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from worker.inference.forwards.packing import Ids, Packing

# How many queries of a row are looked at together where each sees its neighbourhood alone.
_BLOCK = 128
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


class Attention(Protocol):
    """Attention within each row of a packed sequence, as a layer of an encoder calls it.

    Attributes:
        chosen: (rows + spare rows,), the index of each row's chosen token.
    """

    chosen: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, chosen_only: bool = False) -> Tensor:
        """See `RowAttention.__call__`."""


class RowAttention:
    """Attention within each row of one packed sequence.

    Args:
        packing: of the rows.
        places: (rows,), where in each row its chosen token stands, from 0: the one that the last layer is asked for.
        device: of the queries.
        in_tiles: whether windows are whole AMX tiles.
        varlen: whether `varlen_attn` takes the place of the runs.

    Attributes:
        bounds: (rows + 1,), int32, cumulative lengths: row ``i`` is ``bounds[i]:bounds[i + 1]``.
        chosen: (rows + spare rows,), the index of each row's chosen token; a spare row has the sequence's first token.
        runs: of the rows.
    """

    def __init__(
        self, packing: Packing, places: Ids, *, device: torch.device, in_tiles: bool = False, varlen: bool = False
    ) -> None:
        self.bounds = torch.from_numpy(packing.bounds).to(device)
        self.chosen = torch.from_numpy(np.pad(packing.bounds[:-1] + places, (0, packing.spare_rows))).to(device)
        self.runs = runs(packing.lengths.tolist(), tokens=packing.tokens if in_tiles else 0)
        self._places = places
        self._chosen_are_last = bool((places == packing.lengths - 1).all())
        self._longest = max(run.length for run in self.runs)
        self._varlen = varlen

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, chosen_only: bool = False, causal: bool = False
    ) -> Tensor:
        """Attend.

        Args:
            query: (tokens, heads, head size); with ``chosen_only`` those of `chosen`, (rows + spare rows, ...).
            key: (tokens, heads, head size). Of another sequence with the same rows this is cross attention.
            value: as ``key``.
            chosen_only: whether each row has one query, that of its chosen token.
            causal: whether a token sees itself and what stands before it in its row, and nothing behind.

        Returns:
            The shape of ``query``; zeros for spare tokens and rows.
        """
        if self._varlen:
            return self._attend_varlen(query, key, value, chosen_only=chosen_only, causal=causal)
        context = query.new_zeros(query.shape)
        for run in self.runs:
            self._attend(run, query, key, value, context, chosen_only=chosen_only, causal=causal)
        return context

    def _attend(
        self,
        run: Run,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        context: Tensor,
        *,
        chosen_only: bool,
        causal: bool,
    ) -> None:
        """Attend within a run's rows, and write what they see to its place in ``context``."""
        if chosen_only:
            at, own, width = run.first, 1, run.length
            mask = self._mask_behind_chosen(run, query.device) if causal else None
            queries = _windows(query, at, run.count, own, own)
        else:
            at, own, width = run.start, run.length, run.width
            mask = None if causal else run.mask(query)
            queries = _windows(query, at, run.count, own, width)
        keys, values = (_windows(x, run.start, run.count, run.length, width) for x in (key, value))
        # What is causal needs no mask against the rows that follow.
        forward_only = causal and not chosen_only
        seen = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=forward_only)
        # (count, heads, width, size) -> (count * own, heads, size).
        rows = context[at : at + run.count * own].view(run.count, own, *query.shape[1:])
        rows.copy_(seen[:, :, :own].transpose(1, 2))

    def nearby(self, query: Tensor, key: Tensor, value: Tensor, *, reach: int) -> Tensor:
        """Attend, every token to those of its row that are at most ``reach`` away. Arguments are as in a call."""
        if self._varlen:
            return self._attend_varlen(query, key, value, chosen_only=False, causal=False, reach=reach)
        context = query.new_zeros(query.shape)
        for run in self.runs:
            if run.length <= reach + 1:
                self._attend(run, query, key, value, context, chosen_only=False, causal=False)
            else:
                self._attend_nearby(run, query, key, value, context, reach)
        return context

    def _attend_nearby(self, run: Run, query: Tensor, key: Tensor, value: Tensor, context: Tensor, reach: int) -> None:
        """Look at a row's queries in blocks, each with the keys that some query of the block sees."""
        # (count, heads, length, size).
        queries, keys, values = (_windows(x, run.start, run.count, run.length, run.length) for x in (query, key, value))
        rows = context[run.start : run.start + run.count * run.length].view(run.count, run.length, *query.shape[1:])
        places = torch.arange(run.length, device=query.device)
        for start in range(0, run.length, _BLOCK):
            block = slice(start, start + _BLOCK)
            near = slice(max(0, start - reach), start + _BLOCK + reach)
            mask = (places[block, None] - places[near]).abs() <= reach
            seen = scaled_dot_product_attention(queries[:, :, block], keys[:, :, near], values[:, :, near], mask)
            rows[:, block].copy_(seen.transpose(1, 2))

    def _mask_behind_chosen(self, run: Run, device: torch.device) -> Tensor | None:
        """Which keys the chosen token of each row sees, (count, 1, 1, length), where it may not see all."""
        if self._chosen_are_last:
            return None
        places = torch.from_numpy(self._places[run.first : run.first + run.count]).to(device)
        return (torch.arange(run.length, device=device) <= places.unsqueeze(1)).view(run.count, 1, 1, -1)

    def _attend_varlen(
        self, query: Tensor, key: Tensor, value: Tensor, *, chosen_only: bool, causal: bool, reach: int = -1
    ) -> Tensor:
        query_bounds, longest_query, seen = self.bounds, self._longest, None
        if chosen_only:
            query_bounds = torch.arange(len(self.bounds), dtype=torch.int32, device=self.bounds.device)
            longest_query = 1
            if causal and not self._chosen_are_last:
                seen = torch.from_numpy(self._places + np.int32(1)).to(self.bounds.device)
        window = (-1, 0) if causal and not chosen_only else (reach, reach)
        attended = varlen_attn(
            query,
            key,
            value,
            query_bounds,
            self.bounds,
            longest_query,
            self._longest,
            window_size=window,
            seqused_k=seen,
        )
        return attended if isinstance(attended, Tensor) else attended[0]


def _windows(x: Tensor, start: int, count: int, length: int, width: int) -> Tensor:
    """Views of ``width`` tokens, ``length`` apart: (tokens, heads, size) -> (count, heads, width, size)."""
    end = start + (count - 1) * length + width
    return x[start:end].unfold(0, width, length).transpose(2, 3)
