"""The packed forward: rows laid end to end in one long sequence, so that nothing is padding. For the BERT family.

Attention keeps to each row; everything else in a transformer layer looks at one token at a time and never knows that
its neighbours belong to other rows. The model's own modules do the work (their weights stay in one place), save that
query, key and value become one matrix product. The last layer computes no more than is asked of it: to classify, only
the states of each row's first token (CLS), so its feed-forward half runs on one token per row.

Where oneDNN multiplies, the sequence ends in a few tokens of nothing, so that its length is one of few (`_rounded`).

On CUDA in half precision attention is `torch.nn.attention.varlen` (FlashAttention over cumulative lengths). Elsewhere
it is `scaled_dot_product_attention` over runs of rows of equal length, which the engine's length order makes long, and
where oneDNN multiplies in windows of whole tiles (`_Run`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from worker.inference.forwards import linear as denses
from worker.inference.forwards.linear import Activation, Dense
from worker.inference.model import Checkpoint
from worker.messages import Pooling, Row

Step = Callable[[Tensor], Tensor]
MakeDense = Callable[[nn.Linear, Activation | None], Dense]

ROBERTA = frozenset({"roberta", "xlm-roberta", "camembert"})
FAMILIES = ROBERTA | {"bert", "distilbert"}


def supports(checkpoint: Checkpoint) -> bool:
    """Whether this checkpoint is an encoder that `Packed` knows how to run."""
    return checkpoint.family in FAMILIES and not getattr(checkpoint.model.config, "is_decoder", False)


class Packed:
    """A `worker.inference.engine.Forward` without padding.

    ``rounds``: whether sequences get a length that is one of few, and attention whole tiles; None: where oneDNN
    multiplies.
    """

    def __init__(self, checkpoint: Checkpoint, *, rounds: bool | None = None) -> None:
        base: Any = checkpoint.model.base_model  # Any: the submodules of transformers' models are untyped
        self._device = checkpoint.device
        self._embeddings = base.embeddings
        self._heads = int(checkpoint.model.config.num_attention_heads)
        dense = denses.choose(checkpoint.device, checkpoint.precision)
        self._rounds = denses.by_onednn(checkpoint.device, checkpoint.precision) if rounds is None else rounds
        if checkpoint.family == "distilbert":
            self._layers = [_distilbert_layer(layer, dense) for layer in base.transformer.layer]
        else:
            self._layers = [_bert_layer(layer, dense) for layer in base.encoder.layer]
        self._head = _head(checkpoint)
        # RoBERTa counts positions from the one after the padding id (transformers: create_position_ids_from_input_ids).
        self._first_position = self._embeddings.padding_idx + 1 if checkpoint.family in ROBERTA else 0
        # BERT tells segments apart, RoBERTa has one type for all, DistilBERT none.
        self._token_types = getattr(checkpoint.model.config, "type_vocab_size", 0)
        self._varlen = checkpoint.device.type == "cuda" and checkpoint.model.dtype in {torch.float16, torch.bfloat16}

    def slots(self, lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """The sum of the first one, two, ... of ``lengths``: rows are not padded, their sum may be rounded."""
        sums = np.cumsum(lengths)
        return _rounded(sums, _TOKENS) if self._rounds else sums

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        """Class logits, (rows, classes)."""
        states, _ = self._states(rows, first_only=True)
        logits: npt.NDArray[np.float32] = self._head(states)[: len(rows)].float().numpy(force=True)
        return logits

    @torch.inference_mode()
    def pooled(self, rows: Sequence[Row], pooling: Pooling) -> npt.NDArray[np.float32]:
        """The last hidden states as one vector per row, (rows, hidden size), not normalised.

        MEAN is over all tokens of the row, special ones included, as sentence-transformers pools.
        """
        states, spans = self._states(rows, first_only=pooling is Pooling.CLS)
        states = states.float()
        if pooling is Pooling.MEAN:
            states = torch.segment_reduce(states[: spans.tokens], "mean", offsets=spans.bounds.long(), axis=0)
        return states[: len(rows)].numpy(force=True)

    def _states(self, rows: Sequence[Row], *, first_only: bool) -> tuple[Tensor, _Spans]:
        """Last hidden states: (rows, hidden size) of each row's first token, or (tokens, hidden size) of all.

        Behind them follow those of nothing, where the counts of tokens and rows are rounded.
        """
        states, spans = self._compute(rows, first_only=first_only, in_tiles=self._rounds)
        if self._rounds and not states.isfinite().all():
            # A window reads on into the next row under a mask of zeros, and zero times what is not finite is NaN: so
            # that a poisonous row spoils no neighbour, each looks at nothing but itself now.
            states, spans = self._compute(rows, first_only=first_only, in_tiles=False)
        return states, spans

    def _compute(self, rows: Sequence[Row], *, first_only: bool, in_tiles: bool) -> tuple[Tensor, _Spans]:
        lengths = np.fromiter((len(row.token_ids) for row in rows), dtype=np.int32, count=len(rows))
        bounds = np.concatenate([[0], np.cumsum(lengths)], dtype=np.int32)
        within = np.arange(bounds[-1], dtype=np.int32) - np.repeat(bounds[:-1], lengths)
        inputs = {
            "input_ids": np.concatenate([row.token_ids for row in rows], dtype=np.int32),
            "position_ids": within + np.int32(self._first_position),
        }
        if self._token_types == 1:
            inputs["token_type_ids"] = np.zeros_like(within)
        elif self._token_types:
            borders = np.fromiter((row.segment_at for row in rows), dtype=np.int32, count=len(rows))
            inputs["token_type_ids"] = (within >= np.repeat(borders, lengths)).astype(np.int32)
        tail = extra = 0
        if self._rounds:
            tail = int(_rounded(bounds[-1:].astype(np.intp), _TOKENS)[0] - bounds[-1])
            extra = int(_rounded(np.array([len(rows)]), _ROWS)[0]) - len(rows)
            inputs = {name: np.pad(ids, (0, tail)) for name, ids in inputs.items()}
        runs = _runs(lengths.tolist(), len(within) + tail if in_tiles else 0)
        spans = _Spans(self._tensor(bounds), runs, extra=extra, varlen=self._varlen)

        # The embeddings, and their sum's layer norm, are those of a batch of one long row.
        x = self._embeddings(**{name: self._tensor(ids).unsqueeze(0) for name, ids in inputs.items()}).squeeze(0)
        for layer in self._layers[:-1]:
            x = layer(x, spans, self._heads)
        return self._layers[-1](x, spans, self._heads, first_only=first_only), spans

    def _tensor(self, array: npt.NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


# The fewest tokens and rows that are told apart.
_TOKENS = 128
_ROWS = 16


def _rounded(counts: npt.NDArray[np.intp], least: int) -> npt.NDArray[np.intp]:
    """Each count rounded up to a multiple of ``least``, and to one of four steps between two powers of two.

    oneDNN builds a primitive for each shape that it multiplies, which takes it milliseconds, and keeps a thousand of
    them, of up to a megabyte each. With ever new counts of tokens a small model spent more time on that than on its
    products, and memory grew for hours.
    """
    steps = np.maximum(least, 1 << np.maximum(0, np.frexp(counts - 1)[1] - 3))
    rounded: npt.NDArray[np.intp] = -(-counts // steps) * steps
    return rounded


# The rows of a tile of AMX, and the fewest tokens for which torch's attention packs its operands into tiles at all.
_TILE = 16
_FEWEST_IN_TILES = 64


@dataclass(frozen=True, slots=True)
class _Run:
    """``count`` rows of ``length`` tokens each, one behind the other, from token ``start`` on; row ``first`` leads.

    Attention looks at each through a window of ``width`` tokens from its first one on, which may reach into the rows
    behind it: their keys are masked and what their queries see is dropped. torch's attention in bfloat16 takes 3.0 us
    of an AMX core for a token of a row of 63 tokens, 4.5 us for one of 127; with one token more, when all tiles are
    whole, 1.4 and 1.9 us. Copied and padded rows would cost what the whole tiles save.
    """

    count: int
    length: int
    start: int
    first: int
    width: int

    def mask(self, like: Tensor) -> Tensor | None:
        """What to add to the scores of each query, (count, 1, 1, width), to look at its own row only."""
        if self.width == self.length:
            return None
        mask = like.new_zeros(self.width)
        mask[self.length :] = -torch.inf
        return mask.expand(self.count, 1, 1, -1)


def _runs(lengths: Sequence[int], tokens: int) -> list[_Run]:
    """The runs of rows of these lengths; in whole tiles where that is faster and ends within the first ``tokens``."""
    runs = []
    start = first = 0
    for length, rows in groupby(lengths):
        count = len(list(rows))
        width = -(-length // _TILE) * _TILE if length >= _FEWEST_IN_TILES * 3 // 4 else length
        end = start + count * length
        if end - length + width > tokens:
            width = length
        runs.append(_Run(count, length, start, first, width))
        start, first = end, first + count
    return runs


class _Spans:
    """Where each row lies in the packed sequence, and attention that keeps to it.

    ``bounds`` (rows + 1, int32) are the cumulative lengths: row ``i`` is ``bounds[i]:bounds[i + 1]``. Behind the last
    row may come tokens of nothing, and ``extra`` rows of nothing are taken for first tokens: nobody attends to them.
    """

    def __init__(self, bounds: Tensor, runs: Sequence[_Run], *, extra: int, varlen: bool) -> None:
        self.bounds = bounds
        self.tokens = runs[-1].start + runs[-1].count * runs[-1].length
        self.first = torch.cat([bounds[:-1], bounds.new_zeros(extra)]) if extra else bounds[:-1]
        self._runs = runs
        self._longest = max(run.length for run in runs)
        self._varlen = varlen

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, first_only: bool) -> Tensor:
        """Attention of (tokens, heads, head size); with ``first_only`` there is one query per row."""
        if self._varlen:
            if not first_only:
                return _output(varlen_attn(query, key, value, self.bounds, self.bounds, self._longest, self._longest))
            every_one = torch.arange(len(self.bounds), dtype=torch.int32, device=self.bounds.device)
            return _output(varlen_attn(query, key, value, every_one, self.bounds, 1, self._longest))
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


def _windows(x: Tensor, start: int, count: int, length: int, width: int) -> Tensor:
    """Views of ``width`` tokens, ``length`` apart: (tokens, heads, size) -> (count, heads, width, size)."""
    end = start + (count - 1) * length + width
    return x[start:end].unfold(0, width, length).transpose(2, 3)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One post-norm transformer layer (Vaswani et al. 2017, as in BERT)."""

    qkv: Dense
    out: Dense
    norm_attention: Step
    up: Dense
    down: Dense
    norm_output: Step

    def __call__(self, x: Tensor, spans: _Spans, heads: int, *, first_only: bool = False) -> Tensor:
        query, key, value = self.qkv(x).view(len(x), 3, heads, -1).unbind(1)
        if first_only:  # whatever follows looks at no other token
            query, x = query[spans.first], x[spans.first]
        context = spans.attend(query, key, value, first_only=first_only)
        x = self.norm_attention(self.out(context.flatten(1), x))
        return self.norm_output(self.down(self.up(x), x))


def _bert_layer(layer: Any, dense: MakeDense) -> _Layer:
    attention = layer.attention
    return _Layer(
        qkv=dense(_fused(attention.self.query, attention.self.key, attention.self.value), None),
        out=dense(attention.output.dense, None),
        norm_attention=attention.output.LayerNorm,
        up=dense(layer.intermediate.dense, layer.intermediate.intermediate_act_fn),
        down=dense(layer.output.dense, None),
        norm_output=layer.output.LayerNorm,
    )


def _distilbert_layer(layer: Any, dense: MakeDense) -> _Layer:
    attention = layer.attention
    return _Layer(
        qkv=dense(_fused(attention.q_lin, attention.k_lin, attention.v_lin), None),
        out=dense(attention.out_lin, None),
        norm_attention=layer.sa_layer_norm,
        up=dense(layer.ffn.lin1, layer.ffn.activation),
        down=dense(layer.ffn.lin2, None),
        norm_output=layer.output_layer_norm,
    )


def _head(checkpoint: Checkpoint) -> Step:
    """From the CLS states, (rows, hidden size), to the logits, with the model's own modules."""
    model: Any = checkpoint.model
    if checkpoint.order is None:
        return nn.Identity()  # EMBED only; nobody asks for logits
    if checkpoint.family == "bert":
        return lambda cls: model.classifier(model.bert.pooler(cls.unsqueeze(1)))
    if checkpoint.family == "distilbert":
        return lambda cls: model.classifier(torch.relu(model.pre_classifier(cls)))
    return lambda cls: model.classifier(cls.unsqueeze(1))


def _fused(*linears: nn.Linear) -> nn.Linear:
    """One linear layer in place of several over the same input. Theirs become views of its weights: no copy stays."""
    sizes = [linear.out_features for linear in linears]
    fused = nn.Linear(linears[0].in_features, sum(sizes), device="meta").requires_grad_(requires_grad=False)
    for name in ("weight", "bias"):
        whole = torch.cat([getattr(linear, name) for linear in linears])
        setattr(fused, name, nn.Parameter(whole, requires_grad=False))
        for linear, part in zip(linears, torch.split(whole, sizes), strict=True):
            setattr(linear, name, nn.Parameter(part, requires_grad=False))
    return fused


def _output(attended: Tensor | tuple[Tensor, ...]) -> Tensor:
    return attended if isinstance(attended, Tensor) else attended[0]
