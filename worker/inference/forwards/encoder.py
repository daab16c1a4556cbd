"""The packed forward of BERT and RoBERTa, and of their relatives: DistilBERT, MiniLM, CamemBERT, ELECTRA, ALBERT.

To classify, only the states of each row's first token (CLS) are needed, so the last layer asks for no other: its
feed-forward half runs on one token per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from worker.inference.forwards import packed
from worker.inference.forwards.layers import EncoderLayer, Norm, Projection, Step
from worker.inference.forwards.linear import MakeLinear, fuse
from worker.inference.forwards.packed import PackedRows
from worker.inference.forwards.packing import Ids, Packing
from worker.inference.model import Checkpoint

ROBERTA = frozenset({"roberta", "xlm-roberta", "camembert"})
FAMILIES = ROBERTA | {"bert", "distilbert", "electra", "albert"}


def supports(config: PreTrainedConfig) -> bool:
    """Whether it encodes: BERT and RoBERTa also come as decoders."""
    return not getattr(config, "is_decoder", False)


class Encoder:
    """A `worker.inference.forwards.packed.PackedModel`.

    Args:
        checkpoint: of one of `FAMILIES`. Its query, key and value weights become views of fused ones.
        make: of linear layers.
    """

    def __init__(self, checkpoint: Checkpoint, make: MakeLinear) -> None:
        base: Any = checkpoint.model.base_model  # Any: the submodules of transformers' models are untyped
        config: Any = checkpoint.model.config
        self._embeddings = base.embeddings
        self._widen = _widening(base, checkpoint.family)
        self._layers = list(_layers(base, checkpoint.family, int(config.num_attention_heads), make))
        self._head = _head(checkpoint)
        # RoBERTa counts positions from the one after the padding id (transformers: create_position_ids_from_input_ids).
        self._first_position = self._embeddings.padding_idx + 1 if checkpoint.family in ROBERTA else 0
        # BERT tells segments apart, RoBERTa has one type for all, DistilBERT none.
        self._token_types = getattr(config, "type_vocab_size", 0)

    def places(self, packing: Packing) -> Ids:
        """The head reads CLS."""
        return packed.first_places(packing)

    def states(self, rows: PackedRows, *, chosen_only: bool) -> Tensor:
        """Last hidden states."""
        packing = rows.packing
        inputs = {"input_ids": packing.token_ids, "position_ids": packing.within + np.int32(self._first_position)}
        if self._token_types == 1:
            inputs["token_type_ids"] = np.zeros_like(packing.within)
        elif self._token_types:
            inputs["token_type_ids"] = packing.segments(rows.rows)
        # The embeddings, and their sum's layer norm, are those of a batch of one long row.
        ids = {name: rows.tensor(array).unsqueeze(0) for name, array in inputs.items()}
        x = self._widen(self._embeddings(**ids).squeeze(0))
        for layer in self._layers[:-1]:
            x = layer(x, rows.attention)
        return self._layers[-1](x, rows.attention, chosen_only=chosen_only)

    def classify(self, states: Tensor) -> Tensor:
        """With the model's own head."""
        return self._head(states)


def _widening(base: Any, family: str) -> Step:
    """From the width of the embeddings to that of the states, where they differ (ELECTRA, ALBERT)."""
    if family == "albert":
        widening: Step = base.encoder.embedding_hidden_mapping_in
        return widening
    return getattr(base, "embeddings_project", nn.Identity())


def _layers(base: Any, family: str, heads: int, make: MakeLinear) -> Iterator[EncoderLayer]:
    """In the order they run; the last has a query of its own."""
    if family == "albert":
        yield from _albert_layers(base.encoder, heads, make)
        return
    layers, convert = (
        (base.transformer.layer, distilbert_layer) if family == "distilbert" else (base.encoder.layer, bert_layer)
    )
    for layer in layers:
        yield convert(layer, heads, make, last=layer is layers[-1])


def bert_layer(layer: Any, heads: int, make: MakeLinear, *, last: bool) -> EncoderLayer:
    """From transformers' layer of BERT, RoBERTa or ELECTRA."""
    attention = layer.attention
    fused = fuse(attention.self.query, attention.self.key, attention.self.value)
    return EncoderLayer(
        project=Projection(fused, heads, make, apart=last),
        out=make(attention.output.dense, None),
        norm_attention=Norm(attention.output.LayerNorm),
        up=make(layer.intermediate.dense, layer.intermediate.intermediate_act_fn),
        down=make(layer.output.dense, None),
        norm_output=Norm(layer.output.LayerNorm),
    )


def distilbert_layer(layer: Any, heads: int, make: MakeLinear, *, last: bool) -> EncoderLayer:
    """From transformers' layer of DistilBERT."""
    attention = layer.attention
    fused = fuse(attention.q_lin, attention.k_lin, attention.v_lin)
    return EncoderLayer(
        project=Projection(fused, heads, make, apart=last),
        out=make(attention.out_lin, None),
        norm_attention=Norm(layer.sa_layer_norm),
        up=make(layer.ffn.lin1, layer.ffn.activation),
        down=make(layer.ffn.lin2, None),
        norm_output=Norm(layer.output_layer_norm),
    )


def _albert_layers(encoder: Any, heads: int, make: MakeLinear) -> Iterator[EncoderLayer]:
    """ALBERT runs one layer, or a few, again and again; only the last run has a query of its own."""
    config = encoder.config
    fused = {
        layer: fuse(layer.attention.query, layer.attention.key, layer.attention.value)
        for group in encoder.albert_layer_groups
        for layer in group.albert_layers
    }
    converted = {layer: _albert_layer(layer, fused[layer], heads, make, last=False) for layer in fused}
    # Which group runs when: transformers, AlbertTransformer.forward.
    groups = [int(i * config.num_hidden_groups / config.num_hidden_layers) for i in range(config.num_hidden_layers)]
    *earlier, last = (layer for group in groups for layer in encoder.albert_layer_groups[group].albert_layers)
    yield from (converted[layer] for layer in earlier)
    yield _albert_layer(last, fused[last], heads, make, last=True)


def _albert_layer(layer: Any, fused: nn.Linear, heads: int, make: MakeLinear, *, last: bool) -> EncoderLayer:
    return EncoderLayer(
        project=Projection(fused, heads, make, apart=last),
        out=make(layer.attention.dense, None),
        norm_attention=Norm(layer.attention.LayerNorm),
        up=make(layer.ffn, layer.activation),
        down=make(layer.ffn_output, None),
        norm_output=Norm(layer.full_layer_layer_norm),
    )


def _head(checkpoint: Checkpoint) -> Callable[[Tensor], Tensor]:
    """From the CLS states, (rows, hidden size), to the logits, with the model's own modules."""
    model: Any = checkpoint.model
    if checkpoint.order is None:
        return nn.Identity()  # EMBED only; nobody asks for logits
    if checkpoint.family == "bert":
        return lambda cls: model.classifier(model.bert.pooler(cls.unsqueeze(1)))
    if checkpoint.family == "albert":
        return lambda cls: model.classifier(model.albert.pooler_activation(model.albert.pooler(cls)))
    if checkpoint.family == "distilbert":
        return lambda cls: model.classifier(torch.relu(model.pre_classifier(cls)))
    return lambda cls: model.classifier(cls.unsqueeze(1))
