"""The packed forward of BART and mBART: encoder and decoder over the same rows.

The decoder reads the row itself, shifted by one token. A token sees itself and what stands before it in its row, and,
by cross attention, the whole row as the encoder left it. The head reads the decoder's state at the row's last ``</s>``,
so the decoder's last layer has one query a row; of the other tokens it needs keys and values alone. Rows may differ in
how many ``</s>`` they hold, which transformers' own model refuses.

BART's layers are post-norm, mBART's pre-norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from worker.errors import CheckpointError
from worker.inference.forwards.attention import RowAttention
from worker.inference.forwards.layers import EncoderLayer, Norm, Projection, Step
from worker.inference.forwards.linear import Linear, MakeLinear, fuse
from worker.inference.forwards.packed import PackedRows
from worker.inference.forwards.packing import Ids, Packing
from worker.inference.model import Checkpoint

FAMILIES = frozenset({"bart", "mbart"})


def supports(config: PreTrainedConfig) -> bool:
    """Whether it is the whole model: decoders also come alone."""
    return bool(config.is_encoder_decoder)


class Bart:
    """A `worker.inference.forwards.packed.PackedModel`.

    Args:
        checkpoint: of one of `FAMILIES`. Its query, key and value weights become views of fused ones.
        make: of linear layers.

    Raises:
        CheckpointError: the tokenizer ends no row with the token that the head reads.
    """

    def __init__(self, checkpoint: Checkpoint, make: MakeLinear) -> None:
        model: Any = checkpoint.model  # Any: the submodules of transformers' models are untyped
        base, config = model.base_model, model.config
        self._end = int(config.eos_token_id)
        if self._end not in checkpoint.tokenizer(["a"])["input_ids"][0]:
            raise CheckpointError(
                f"the tokenizer of {checkpoint.identity.name} writes no token {self._end} (eos_token_id), which is the "
                "one that BART classifies by; use the tokenizer that the model was trained with"
            )
        pre_norm = checkpoint.family == "mbart"
        # mBART begins with the row's last token, its language. BART begins each row alike.
        self._start = None if pre_norm else int(config.decoder_start_token_id)
        self._encoder, self._decoder = base.encoder, base.decoder
        self._encoder_layers = [
            encoder_layer(layer, int(config.encoder_attention_heads), make, pre_norm=pre_norm)
            for layer in base.encoder.layers
        ]
        heads, last = int(config.decoder_attention_heads), base.decoder.layers[-1]
        self._decoder_layers = [
            decoder_layer(layer, heads, make, pre_norm=pre_norm, last=layer is last) for layer in base.decoder.layers
        ]
        self._head = model.classification_head if checkpoint.order is not None else nn.Identity()

    def places(self, packing: Packing) -> Ids:
        """The head reads the last ``</s>``."""
        ends = np.where(packing.token_ids == self._end, packing.within, np.int32(0))
        places: Ids = np.maximum.reduceat(ends, packing.bounds[:-1])
        return places

    def states(self, rows: PackedRows, *, chosen_only: bool) -> Tensor:
        """The decoder's last hidden states."""
        within = rows.tensor(rows.packing.within)
        encoded = _embed(self._encoder, rows.tensor(rows.packing.token_ids), within)
        for layer in self._encoder_layers:
            encoded = _clamp(layer(encoded, rows.attention))
        encoded = _final_norm(self._encoder)(encoded)
        x = _embed(self._decoder, rows.tensor(self._shifted(rows.packing)), within)
        for decode in self._decoder_layers[:-1]:
            x = decode(x, encoded, rows.attention)
        x = self._decoder_layers[-1](x, encoded, rows.attention, chosen_only=chosen_only)
        return _final_norm(self._decoder)(x)

    def classify(self, states: Tensor) -> Tensor:
        """With the model's own head."""
        logits: Tensor = self._head(states)
        return logits

    def _shifted(self, packing: Packing) -> Ids:
        """What the decoder reads: each row one token to the right (transformers: shift_tokens_right)."""
        shifted = np.roll(packing.token_ids, 1)
        first, last = packing.bounds[:-1], packing.bounds[1:] - 1
        shifted[first] = packing.token_ids[last] if self._start is None else self._start
        return shifted


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Causal self-attention, cross attention and feed-forward, each with a residual and a norm."""

    project: Projection
    out: Linear
    norm_attention: Norm
    cross_query: Linear
    cross_key_value: Linear
    cross_out: Linear
    norm_cross: Norm
    up: Linear
    down: Linear
    norm_output: Norm
    heads: int

    def __call__(self, x: Tensor, encoded: Tensor, attention: RowAttention, *, chosen_only: bool = False) -> Tensor:
        """States of the decoder and of the encoder, (tokens, hidden size) each, to those of the next layer.

        With ``chosen_only`` to those of each row's chosen token, (rows, hidden size).
        """
        chosen = attention.chosen if chosen_only else None
        query, key, value = self.project(self.norm_attention.before(x), chosen)
        if chosen is not None:  # whatever follows looks at no other token
            x = x[chosen]
        context = attention(query, key, value, chosen_only=chosen_only, causal=True)
        x = self.norm_attention.after(self.out(context.flatten(1), x))
        query = self.cross_query(self.norm_cross.before(x)).view(len(x), self.heads, -1)
        key, value = self.cross_key_value(encoded).view(len(encoded), 2, self.heads, -1).unbind(1)
        context = attention(query, key, value, chosen_only=chosen_only)
        x = self.norm_cross.after(self.cross_out(context.flatten(1), x))
        return self.norm_output.after(self.down(self.up(self.norm_output.before(x)), x))


def encoder_layer(layer: Any, heads: int, make: MakeLinear, *, pre_norm: bool) -> EncoderLayer:
    """From transformers' encoder layer of BART or mBART. All of its queries are needed, by the decoder."""
    attention = layer.self_attn
    fused = fuse(attention.q_proj, attention.k_proj, attention.v_proj)
    return EncoderLayer(
        project=Projection(fused, heads, make, apart=False),
        out=make(attention.out_proj, None),
        norm_attention=Norm(layer.self_attn_layer_norm, leads=pre_norm),
        up=make(layer.fc1, layer.activation_fn),
        down=make(layer.fc2, None),
        norm_output=Norm(layer.final_layer_norm, leads=pre_norm),
    )


def decoder_layer(layer: Any, heads: int, make: MakeLinear, *, pre_norm: bool, last: bool) -> DecoderLayer:
    """From transformers' decoder layer of BART or mBART."""
    attention, cross = layer.self_attn, layer.encoder_attn
    return DecoderLayer(
        project=Projection(fuse(attention.q_proj, attention.k_proj, attention.v_proj), heads, make, apart=last),
        out=make(attention.out_proj, None),
        norm_attention=Norm(layer.self_attn_layer_norm, leads=pre_norm),
        cross_query=make(cross.q_proj, None),
        cross_key_value=make(fuse(cross.k_proj, cross.v_proj), None),
        cross_out=make(cross.out_proj, None),
        norm_cross=Norm(layer.encoder_attn_layer_norm, leads=pre_norm),
        up=make(layer.fc1, layer.activation_fn),
        down=make(layer.fc2, None),
        norm_output=Norm(layer.final_layer_norm, leads=pre_norm),
        heads=heads,
    )


def _embed(stack: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Tokens and positions of encoder or decoder, normed, (tokens, hidden size)."""
    # Where positions are given the module looks at no ids.
    embedded: Tensor = stack.embed_tokens(ids) + stack.embed_positions(ids, position_ids=positions).squeeze(0)
    normed: Tensor = stack.layernorm_embedding(embedded)
    return normed


def _final_norm(stack: Any) -> Step:
    """What pre-norm layers leave to be done; post-norm layers leave nothing."""
    return getattr(stack, "layer_norm", nn.Identity())


def _clamp(x: Tensor) -> Tensor:
    """In float16 no infinity leaves an encoder layer (transformers: BartEncoderLayer.forward)."""
    if x.dtype is not torch.float16:
        return x
    largest = torch.finfo(x.dtype).max - 1000
    return x.clamp(-largest, largest)
