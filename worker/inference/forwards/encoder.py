"""The packed forward of the BERT and RoBERTa families, DistilBERT and MiniLM among them.

Attention keeps to each row (`worker.inference.forwards.attention`). Everything else in a transformer layer looks at one
token at a time, whatever row its neighbours belong to. The model's own modules do the work, so that their weights stay
in one place; only query, key and value become one matrix product. The last layer computes no more than is asked of it:
to classify, only the states of each row's first token (CLS) are needed, so its feed-forward half runs on one token per
row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from worker.inference.forwards import linear as linears
from worker.inference.forwards import packing
from worker.inference.forwards.attention import RowAttention, runs
from worker.inference.forwards.linear import Linear, MakeLinear, fuse
from worker.inference.forwards.packing import Ids, Packing
from worker.inference.model import Checkpoint
from worker.messages import Pooling, Row

Step = Callable[[Tensor], Tensor]

ROBERTA = frozenset({"roberta", "xlm-roberta", "camembert"})
FAMILIES = ROBERTA | {"bert", "distilbert"}


def supports(checkpoint: Checkpoint) -> bool:
    """Whether this checkpoint is an encoder that `Packed` knows how to run."""
    return checkpoint.family in FAMILIES and not getattr(checkpoint.model.config, "is_decoder", False)


class Packed:
    """A `worker.inference.engine.Forward` without padding.

    Args:
        checkpoint: one that `supports` accepts. Its query, key and value weights become views of fused ones.
        rounds: whether sequences get a length that is one of few, and attention whole tiles; None: where oneDNN
            multiplies.
    """

    def __init__(self, checkpoint: Checkpoint, *, rounds: bool | None = None) -> None:
        base: Any = checkpoint.model.base_model  # Any: the submodules of transformers' models are untyped
        self._device = checkpoint.device
        self._embeddings = base.embeddings
        self._heads = int(checkpoint.model.config.num_attention_heads)
        make = linears.choose(checkpoint.device, checkpoint.precision)
        self._rounds = linears.by_onednn(checkpoint.device, checkpoint.precision) if rounds is None else rounds
        if checkpoint.family == "distilbert":
            self._layers = [distilbert_layer(layer, make) for layer in base.transformer.layer]
        else:
            self._layers = [bert_layer(layer, make) for layer in base.encoder.layer]
        self._head = _head(checkpoint)
        # RoBERTa counts positions from the one after the padding id (transformers: create_position_ids_from_input_ids).
        self._first_position = self._embeddings.padding_idx + 1 if checkpoint.family in ROBERTA else 0
        # BERT tells segments apart, RoBERTa has one type for all, DistilBERT none.
        self._token_types = getattr(checkpoint.model.config, "type_vocab_size", 0)
        self._varlen = checkpoint.device.type == "cuda" and checkpoint.model.dtype in {torch.float16, torch.bfloat16}

    def slots(self, lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """The sum of the first one, two, ... of ``lengths``: rows are not padded, their sum may be rounded."""
        return packing.slots(lengths, rounds=self._rounds)

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        """Class logits, (rows, classes)."""
        states, _, _ = self._states(rows, first_only=True)
        logits: npt.NDArray[np.float32] = self._head(states)[: len(rows)].float().numpy(force=True)
        return logits

    @torch.inference_mode()
    def pooled(self, rows: Sequence[Row], pooling: Pooling) -> npt.NDArray[np.float32]:
        """The last hidden states as one vector per row, (rows, hidden size), not normalised.

        MEAN is over all tokens of the row, special ones included, as sentence-transformers pools.
        """
        states, packed, attention = self._states(rows, first_only=pooling is Pooling.CLS)
        states = states.float()
        if pooling is Pooling.MEAN:
            own = states[: len(packed.within)]
            states = torch.segment_reduce(own, "mean", offsets=attention.bounds.long(), axis=0)
        return states[: len(rows)].numpy(force=True)

    def _states(self, rows: Sequence[Row], *, first_only: bool) -> tuple[Tensor, Packing, RowAttention]:
        """Last hidden states: (rows, hidden size) of each row's first token, or (tokens, hidden size) of all.

        Those of spare rows or spare tokens follow.
        """
        packed = packing.pack(rows, rounds=self._rounds)
        states, attention = self._compute(rows, packed, first_only=first_only, in_tiles=self._rounds)
        if self._rounds and not states.isfinite().all():
            # A window reads on into the next row, under a mask that gives it weights of zero, and zero times what is
            # not finite is NaN. So that a row with NaN spoils no neighbour, each row now sees nothing but itself.
            states, attention = self._compute(rows, packed, first_only=first_only, in_tiles=False)
        return states, packed, attention

    def _compute(
        self, rows: Sequence[Row], packed: Packing, *, first_only: bool, in_tiles: bool
    ) -> tuple[Tensor, RowAttention]:
        inputs = {"input_ids": packed.token_ids, "position_ids": packed.within + np.int32(self._first_position)}
        if self._token_types == 1:
            inputs["token_type_ids"] = np.zeros_like(packed.within)
        elif self._token_types:
            inputs["token_type_ids"] = packed.segments(rows)
        attention = RowAttention(
            self._tensor(packed.bounds),
            runs(packed.lengths.tolist(), tokens=packed.tokens if in_tiles else 0),
            spare_rows=packed.spare_rows,
            varlen=self._varlen,
        )
        # The embeddings, and their sum's layer norm, are those of a batch of one long row.
        ids = {name: self._tensor(packed.pad(array)).unsqueeze(0) for name, array in inputs.items()}
        x = self._embeddings(**ids).squeeze(0)
        for layer in self._layers[:-1]:
            x = layer(x, attention, self._heads)
        return self._layers[-1](x, attention, self._heads, first_only=first_only), attention

    def _tensor(self, array: Ids) -> Tensor:
        return torch.from_numpy(array).to(self._device)


@dataclass(frozen=True, slots=True)
class PostNormLayer:
    """One transformer layer whose norms follow the sums (Vaswani et al. 2017, as in BERT)."""

    qkv: Linear
    out: Linear
    norm_attention: Step
    up: Linear
    down: Linear
    norm_output: Step

    def __call__(self, x: Tensor, attention: RowAttention, heads: int, *, first_only: bool = False) -> Tensor:
        """(tokens, hidden size) to the same; with ``first_only`` to each row's first token, (rows, hidden size)."""
        query, key, value = self.qkv(x).view(len(x), 3, heads, -1).unbind(1)
        if first_only:  # whatever follows looks at no other token
            query, x = query[attention.first], x[attention.first]
        context = attention(query, key, value, first_only=first_only)
        x = self.norm_attention(self.out(context.flatten(1), x))
        return self.norm_output(self.down(self.up(x), x))


def bert_layer(layer: Any, make: MakeLinear) -> PostNormLayer:
    """From transformers' layer of BERT or RoBERTa."""
    attention = layer.attention
    return PostNormLayer(
        qkv=make(fuse(attention.self.query, attention.self.key, attention.self.value), None),
        out=make(attention.output.dense, None),
        norm_attention=attention.output.LayerNorm,
        up=make(layer.intermediate.dense, layer.intermediate.intermediate_act_fn),
        down=make(layer.output.dense, None),
        norm_output=layer.output.LayerNorm,
    )


def distilbert_layer(layer: Any, make: MakeLinear) -> PostNormLayer:
    """From transformers' layer of DistilBERT."""
    attention = layer.attention
    return PostNormLayer(
        qkv=make(fuse(attention.q_lin, attention.k_lin, attention.v_lin), None),
        out=make(attention.out_lin, None),
        norm_attention=layer.sa_layer_norm,
        up=make(layer.ffn.lin1, layer.ffn.activation),
        down=make(layer.ffn.lin2, None),
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
