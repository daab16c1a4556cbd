"""The packed forward of DeBERTa v2 and v3 (He et al. 2021, arXiv:2006.03654, and 2023, arXiv:2111.09543).

A score of attention has three parts: content to content as in BERT, content to position (c2p) and position to content
(p2c). With ``q`` and ``k`` of tokens ``i`` and ``j``, and ``K`` and ``Q`` the projected embedding of their distance:

    score(i, j) = (q(i) . k(j) + q(i) . K(i - j) + k(j) . Q(i - j)) / sqrt(3 * head size)

Far distances share an embedding: they are counted in buckets that grow with their logarithm. ``K`` and ``Q`` depend on
weights alone, so they are computed once. In the products of a row's tokens with its distances the next token's numbers
stand one column to the side, so a view with other strides reads each pair's number where it lies. Nothing is gathered.

Version 2 may have a convolution over neighbouring tokens (``conv_kernel_size``). In a packed sequence it would mix
neighbouring rows; such a checkpoint is not for this forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedConfig
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from worker.inference.forwards import linear as linears
from worker.inference.forwards import packed
from worker.inference.forwards.groups import Group, group
from worker.inference.forwards.layers import EncoderLayer, Norm, Projection
from worker.inference.forwards.linear import MakeLinear, fuse
from worker.inference.forwards.packed import PackedRows
from worker.inference.forwards.packing import Ids, Packing
from worker.inference.model import Checkpoint

FAMILIES = frozenset({"deberta-v2"})  # version 3 too
_PARTS = {"c2p", "p2c"}

# The rows of an AMX tile. Widths are made whole ones where oneDNN multiplies; CUDA's kernels ask it of a bias, or copy.
_TILE = 16
# How many of a row's tokens are multiplied with distances at a time. All of them together need twice as many distances
# as one of them does; smaller blocks cost more calls.
_BLOCK = 128
# How many numbers a bias may have on a CPU. With more it leaves the cache before it is read again: groups of 6 MB took
# a fifth less time for rows of 128 tokens than groups of 12 MB.
_LARGEST_BIAS = 3 * 1024**2 // 2


def supports(config: PreTrainedConfig) -> bool:
    """Whether its attention is as described above and no convolution follows."""
    return (
        getattr(config, "conv_kernel_size", 0) <= 0
        and bool(getattr(config, "relative_attention", False))
        and set(getattr(config, "pos_att_type", None) or ()) == _PARTS
    )


class Deberta:
    """A `worker.inference.forwards.packed.PackedModel`.

    Args:
        checkpoint: of one of `FAMILIES`. Its query, key and value weights become views of fused ones.
        make: of linear layers.
        in_tiles: whether attention runs in whole tiles; None: where oneDNN multiplies, and on CUDA.
    """

    def __init__(self, checkpoint: Checkpoint, make: MakeLinear, *, in_tiles: bool | None = None) -> None:
        model: Any = checkpoint.model  # Any: the submodules of transformers' models are untyped
        base = model.base_model
        self._embeddings = base.embeddings
        self._token_types = model.config.type_vocab_size
        self._distances = Distances.of(base.encoder)
        # Before the layers: they may quantise the weights that these are made of.
        self._tables = [Table.of(layer.attention.self, base.encoder) for layer in base.encoder.layer]
        heads, last = int(model.config.num_attention_heads), base.encoder.layer[-1]
        self._layers = [deberta_layer(layer, heads, make, last=layer is last) for layer in base.encoder.layer]
        if in_tiles is None:
            device = checkpoint.device
            in_tiles = device.type == "cuda" or linears.by_onednn(device, checkpoint.precision)
        self._multiple_of = _TILE if in_tiles else 1
        self._most_pairs = _LARGEST_BIAS // heads if checkpoint.device.type == "cpu" else None
        self._head = nn.Sequential(model.pooler, model.classifier) if checkpoint.order is not None else nn.Identity()

    def places(self, packing: Packing) -> Ids:
        """The head reads CLS."""
        return packed.first_places(packing)

    def states(self, rows: PackedRows, *, chosen_only: bool) -> Tensor:
        """Last hidden states."""
        packing = rows.packing
        inputs = {"input_ids": packing.token_ids, "position_ids": packing.within}
        if self._token_types > 1:
            inputs["token_type_ids"] = packing.segments(rows.rows)
        ids = {name: rows.tensor(array).unsqueeze(0) for name, array in inputs.items()}
        x: Tensor = self._embeddings(**ids).squeeze(0)
        groups = group(
            packing.lengths.tolist(), rows.device, multiple_of=self._multiple_of, most_pairs=self._most_pairs
        )
        index = self._distances.index(max(part.width for part in groups), rows.device)
        last = self._layers[-1]
        for layer, table in zip(self._layers, self._tables, strict=True):
            attention = DisentangledAttention(groups, rows.attention.chosen, table.at(index))
            x = layer(x, attention, chosen_only=chosen_only and layer is last)
        return x

    def classify(self, states: Tensor) -> Tensor:
        """With the model's own pooler and classifier."""
        logits: Tensor = self._head(states.unsqueeze(1))
        return logits


@dataclass(frozen=True, slots=True)
class Distances:
    """How distances between tokens are numbered.

    Attributes:
        span: the number of the distance 0; numbers run from 0 to ``2 * span - 1``.
        buckets: how many distances to one side have numbers; 0: each has its own, up to the farthest.
        farthest: the distance from which on all have the same number.
    """

    span: int
    buckets: int
    farthest: int

    @classmethod
    def of(cls, encoder: Any) -> Distances:
        """As the encoder's config says."""
        buckets = max(encoder.position_buckets, 0)
        return cls(buckets or encoder.max_relative_positions, buckets, encoder.max_relative_positions)

    def index(self, width: int, device: torch.device) -> Tensor:
        """(2 * width - 1,): the number of each distance ``i - j`` within ``width`` tokens, from the least on."""
        distances = torch.arange(1 - width, width)
        if self.buckets:
            # Not written anew: where a bucket ends depends on how a logarithm is rounded.
            distances = make_log_bucket_position(distances, self.buckets, self.farthest).long()
        return (distances + self.span).clamp(0, 2 * self.span - 1).to(device)


@dataclass(frozen=True, slots=True)
class Table:
    """What one layer makes of the embeddings of distances: (heads, 2 * span, head size) each, scaled as scores are.

    Attributes:
        keys: what a query meets (c2p).
        queries: what meets a key (p2c).
    """

    keys: Tensor
    queries: Tensor

    @classmethod
    def of(cls, attention: Any, encoder: Any) -> Table:
        """Project as `DisentangledSelfAttention` does, with the keys and queries of tokens where it shares those."""
        shared = attention.share_att_key
        embeddings = encoder.get_rel_embedding()[: 2 * attention.pos_ebd_size]
        keys = (attention.key_proj if shared else attention.pos_key_proj)(embeddings)
        queries = (attention.query_proj if shared else attention.pos_query_proj)(embeddings)
        heads, scale = attention.num_attention_heads, _scale(attention.attention_head_size)
        return cls(*((x * scale).view(len(x), heads, -1).transpose(0, 1).contiguous() for x in (keys, queries)))

    def at(self, index: Tensor) -> Table:
        """The entries of these distances, those of ``queries`` in their order, those of ``keys`` in the opposite one.

        With that, a step to the right is a step to the next key in a product with a query, and to the next query in a
        product with a key.
        """
        return Table(self.keys.index_select(1, index.flip(0)), self.queries.index_select(1, index))

    def within(self, width: int) -> Table:
        """Of a table that `at` made, the part for rows of ``width`` tokens."""
        middle = self.keys.shape[1] // 2
        return Table(*(x[:, middle - width + 1 : middle + width] for x in (self.keys, self.queries)))


class DisentangledAttention:
    """Attention within each row, in one layer.

    Args:
        groups: of the rows.
        chosen: (rows + spare rows,), the index of each row's first token, which is the one that the head reads.
        table: the layer's, `Table.at` the distances within the widest group.
    """

    def __init__(self, groups: Sequence[Group], chosen: Tensor, table: Table) -> None:
        self.chosen = chosen
        self._groups = groups
        self._table = table

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, chosen_only: bool = False) -> Tensor:
        """Attend: (tokens, heads, head size) each; with ``chosen_only`` the queries are those of `chosen`.

        Returns:
            The shape of ``query``; zeros for spare tokens and rows.
        """
        context = query.new_zeros(query.shape)
        scale = _scale(query.shape[-1])
        for part in self._groups:
            table = self._table.within(part.width)
            keys, values = part.gather(key), part.gather(value)
            queries = query[part.first : part.first + part.count] if chosen_only else part.gather(query)
            bias = (_bias_of_first if chosen_only else _bias)(queries, keys, table, part.count)
            if part.beyond is not None:
                bias.masked_fill_(part.beyond, -torch.inf)
            # (count * width, heads, size) -> (count, heads, width, size) and back.
            q, k, v = (x.view(part.count, -1, *x.shape[1:]).transpose(1, 2) for x in (queries, keys, values))
            seen = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2).flatten(0, 1)
            if chosen_only:
                context[part.first : part.first + part.count] = seen
            else:
                part.scatter(seen, context)
        return context


def _bias(queries: Tensor, keys: Tensor, table: Table, count: int) -> Tensor:
    """c2p and p2c of all pairs of a row's tokens, (count, heads, width, width)."""
    width = len(queries) // count
    bias = queries.new_empty((count, queries.shape[1], width, width))
    for start in range(0, width, _BLOCK):
        block = slice(start, min(start + _BLOCK, width))
        bias[:, :, block] = _pairs(queries, table.keys, count, block)
    for start in range(0, width, _BLOCK):
        block = slice(start, min(start + _BLOCK, width))
        bias[..., block] += _pairs(keys, table.queries, count, block).mT
    return bias


def _pairs(x: Tensor, distances: Tensor, count: int, block: slice) -> Tensor:
    """The products of tokens and their distances to the others of their row, as a view.

    Args:
        x: (count * width, heads, head size), of tokens.
        distances: (heads, 2 * width - 1, head size), of which column ``width - 1 - t + u`` is that of tokens t and u.
        count: how many rows.
        block: which of each row's tokens.

    Returns:
        (count, heads, tokens of the block, width): of token t, which is in the block, and token u.
    """
    width, own = len(x) // count, block.stop - block.start
    tokens = x.view(count, width, *x.shape[1:])[:, block].flatten(0, 1)
    # No token of the block is further from another than these.
    near = distances[:, width - block.stop : 2 * width - 1 - block.start]
    # (heads, count * own, own + width - 1): entry (t, u) is column own - 1 - t + u, with t counted within the block.
    products = tokens.transpose(0, 1) @ near.mT
    rows = products.view(len(products), count, -1)
    pairs: Tensor = rows[..., own - 1 :].unfold(2, width, max(1, own + width - 2)).transpose(0, 1)
    return pairs


def _bias_of_first(queries: Tensor, keys: Tensor, table: Table, count: int) -> Tensor:
    """c2p and p2c of each row's first token with all of the row's tokens, (count, heads, 1, width)."""
    width = len(keys) // count
    to_positions = torch.einsum("rhs,hts->rht", queries, table.keys[:, width - 1 :])
    by_row = keys.view(count, width, *keys.shape[1:])
    to_contents = torch.einsum("rths,hts->rht", by_row, table.queries[:, :width].flip(1))
    return (to_positions + to_contents).unsqueeze(2)


def _scale(size: int) -> float:
    """Of the scores: three parts, of as many products as a head is wide."""
    return 1 / math.sqrt((1 + len(_PARTS)) * size)


def deberta_layer(layer: Any, heads: int, make: MakeLinear, *, last: bool) -> EncoderLayer:
    """From transformers' layer of DeBERTa."""
    attention = layer.attention
    fused = fuse(attention.self.query_proj, attention.self.key_proj, attention.self.value_proj)
    return EncoderLayer(
        project=Projection(fused, heads, make, apart=last),
        out=make(attention.output.dense, None),
        norm_attention=Norm(attention.output.LayerNorm),
        up=make(layer.intermediate.dense, layer.intermediate.intermediate_act_fn),
        down=make(layer.output.dense, None),
        norm_output=Norm(layer.output.LayerNorm),
    )
