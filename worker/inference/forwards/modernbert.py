"""The packed forward of ModernBERT (Warner et al. 2024, arXiv:2412.13663).

What differs from BERT: norms come before attention and before the feed-forward half, positions are rotations of queries
and keys (Su et al. 2021, arXiv:2104.09864), the feed-forward half is gated (GeGLU; Shazeer 2020, arXiv:2002.05202), and
in two layers of three a token sees its neighbourhood only. The model's own modules do the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from worker.inference.forwards import packed
from worker.inference.forwards.attention import RowAttention
from worker.inference.forwards.layers import Projection, Step
from worker.inference.forwards.linear import Linear, MakeLinear, rows_of
from worker.inference.forwards.packed import PackedRows
from worker.inference.forwards.packing import Ids, Packing
from worker.inference.model import Checkpoint

FAMILIES = frozenset({"modernbert"})


def supports(config: PreTrainedConfig) -> bool:
    """Whether rotations depend on a token's place in its row alone. Other kinds ask for the batch's longest row too."""
    kinds: Any = config
    return all(kinds.rope_parameters[kind]["rope_type"] == "default" for kind in set(kinds.layer_types))


class ModernBert:
    """A `worker.inference.forwards.packed.PackedModel`.

    Args:
        checkpoint: of one of `FAMILIES`.
        make: of linear layers.
    """

    def __init__(self, checkpoint: Checkpoint, make: MakeLinear) -> None:
        model: Any = checkpoint.model  # Any: the submodules of transformers' models are untyped
        base, config = model.base_model, model.config
        self._embeddings = base.embeddings
        self._rotary = base.rotary_emb
        self._reads_mean = config.classifier_pooling == "mean"
        last = base.layers[-1]
        self._layers = [modernbert_layer(layer, config, make, last=layer is last) for layer in base.layers]
        self._final_norm = base.final_norm
        self._head = nn.Sequential(model.head, model.classifier) if checkpoint.order is not None else nn.Identity()

    def places(self, packing: Packing) -> Ids | None:
        """The head reads CLS, or the mean of the row, as the configuration says."""
        return None if self._reads_mean else packed.first_places(packing)

    def states(self, rows: PackedRows, *, chosen_only: bool) -> Tensor:
        """Last hidden states."""
        x = self._embeddings(rows.tensor(rows.packing.token_ids).unsqueeze(0)).squeeze(0)
        rotations = self._rotations(x, rows)
        last = self._layers[-1]
        for layer in self._layers:
            x = layer(x, rows.attention, rotations[layer.kind], chosen_only=chosen_only and layer is last)
        normed: Tensor = self._final_norm(x)
        return normed

    def classify(self, states: Tensor) -> Tensor:
        """With the model's own head."""
        logits: Tensor = self._head(states)
        return logits

    def _rotations(self, like: Tensor, rows: PackedRows) -> dict[str, Rotation]:
        """Every token's rotation, for each kind of layer."""
        within = rows.tensor(rows.packing.within)
        places = torch.arange(int(rows.packing.lengths.max()), device=rows.device).unsqueeze(0)
        found = {}
        for kind in {layer.kind for layer in self._layers}:
            cosine, sine = (x.squeeze(0).index_select(0, within) for x in self._rotary(like, places, kind))
            found[kind] = Rotation(cosine.unsqueeze(1), sine.unsqueeze(1))
        return found


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and sine of each token's angles, (tokens, 1, head size)."""

    cosine: Tensor
    sine: Tensor

    def at(self, chosen: Tensor) -> Rotation:
        """Of these tokens alone."""
        return Rotation(self.cosine[chosen], self.sine[chosen])

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate (tokens, heads, head size): each number of a head's first half with its counterpart in the second."""
        half = x.shape[-1] // 2
        rotated = x * self.cosine
        rotated[..., :half].addcmul_(x[..., half:], self.sine[..., :half], value=-1)
        rotated[..., half:].addcmul_(x[..., :half], self.sine[..., half:])
        return rotated


@dataclass(frozen=True, slots=True)
class GatedLayer:
    """One transformer layer whose norms lead, with rotated queries and keys and a gated feed-forward half.

    Attributes:
        kind: its rotation's, "full_attention" or "sliding_attention".
        reach: how far to either side a token sees; None: over its whole row.
        norm_attention: ahead of attention; none in the first layer, where the embeddings' norm has just been.
        project: to query, key and value.
        out: of attention.
        norm_feed_forward: ahead of the feed-forward half.
        up: with the activation.
        gate: what the activation is multiplied with.
        down: back to the hidden size.
    """

    kind: str
    reach: int | None
    norm_attention: Step
    project: Projection
    out: Linear
    norm_feed_forward: Step
    up: Linear
    gate: Linear
    down: Linear

    def __call__(self, x: Tensor, attention: RowAttention, rotation: Rotation, *, chosen_only: bool = False) -> Tensor:
        """(tokens, hidden size) to the same; with ``chosen_only`` to each row's chosen token, (rows, hidden size)."""
        chosen = attention.chosen if chosen_only else None
        if self.reach is None:
            query, key, value = self.project(self.norm_attention(x), chosen)
            if chosen is not None:  # whatever follows looks at no other token
                x = x[chosen]
            turned = rotation(query) if chosen is None else rotation.at(chosen)(query)
            context = attention(turned, rotation(key), value, chosen_only=chosen_only)
        else:
            query, key, value = self.project(self.norm_attention(x))
            context = attention.nearby(rotation(query), rotation(key), value, reach=self.reach)
            if chosen is not None:
                context, x = context[chosen], x[chosen]
        x = self.out(context.flatten(1), x)
        normed = self.norm_feed_forward(x)
        return self.down(self.up(normed).mul_(self.gate(normed)), x)


def modernbert_layer(layer: Any, config: Any, make: MakeLinear, *, last: bool) -> GatedLayer:
    """From transformers' layer of ModernBERT."""
    attention, feed_forward = layer.attn, layer.mlp
    inner = feed_forward.Wo.in_features
    reach = config.sliding_window if layer.attention_type == "sliding_attention" else None
    return GatedLayer(
        kind=layer.attention_type,
        reach=reach,
        norm_attention=layer.attn_norm,
        project=Projection(attention.Wqkv, int(config.num_attention_heads), make, apart=last and reach is None),
        out=make(attention.Wo, None),
        norm_feed_forward=layer.mlp_norm,
        up=make(rows_of(feed_forward.Wi, 0, inner), feed_forward.act),
        gate=make(rows_of(feed_forward.Wi, inner, 2 * inner), None),
        down=make(feed_forward.Wo, None),
    )
