"""A reference of `torch.nn.attention.varlen.varlen_attn`: what surrounds the kernel runs where there is none."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    seqused_k: Tensor | None = None,
) -> Tensor:
    """Softmax of scaled products, written out row by row, as FlashAttention defines it.

    Query ``j`` of ``n`` stands at place ``keys - n + j`` and sees ``window_size`` keys to its left and right, all with
    -1. What belongs to no row is undefined, here NaN. What the kernel does not check is checked here.
    """
    for bounds in (cu_seq_q, cu_seq_k):
        assert bounds.dtype == torch.int32
        assert bounds[0] == 0
    assert len(cu_seq_q) == len(cu_seq_k)
    assert cu_seq_q.diff().max() <= max_q
    assert cu_seq_k.diff().max() <= max_k
    assert len(query) >= cu_seq_q[-1]
    assert len(key) >= cu_seq_k[-1]
    out = torch.full_like(query, torch.nan)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    for i in range(len(cu_seq_q) - 1):
        own = slice(int(cu_seq_q[i]), int(cu_seq_q[i + 1]))
        used = int(cu_seq_k[i + 1] - cu_seq_k[i]) if seqused_k is None else int(seqused_k[i])
        seen = slice(int(cu_seq_k[i]), int(cu_seq_k[i]) + used)
        scores = torch.einsum("qhs,khs->hqk", query[own], key[seen]).mul(scale)
        count = own.stop - own.start
        offset = torch.arange(used) - (used - count + torch.arange(count)).unsqueeze(1)
        left, right = window_size
        hidden = torch.zeros_like(offset, dtype=torch.bool)
        if left >= 0:
            hidden |= offset < -left
        if right >= 0:
            hidden |= offset > right
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        out[own] = torch.einsum("hqk,khs->qhs", weights, value[seen])
    return out
