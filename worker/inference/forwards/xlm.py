"""The packed forward of XLM: each row in its language, whose embedding is added to every token of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedConfig

from worker.inference.forwards import packed
from worker.inference.forwards.layers import EncoderLayer, Norm, Projection
from worker.inference.forwards.linear import MakeLinear, fuse
from worker.inference.forwards.packed import PackedRows
from worker.inference.forwards.packing import Ids, Packing
from worker.inference.model import Checkpoint

FAMILIES = frozenset({"xlm"})
_READS_LAST = frozenset({"last", "cls_index"})  # the latter, where nobody names a token


def supports(config: PreTrainedConfig) -> bool:
    """Whether its attention runs both ways and its head reads one token, as in all published checkpoints."""
    summary: str = getattr(config, "summary_type", "last")
    return not getattr(config, "causal", False) and (summary == "first" or summary in _READS_LAST)


class Xlm:
    """A `worker.inference.forwards.packed.PackedModel`.

    Args:
        checkpoint: of one of `FAMILIES`. Its query, key and value weights become views of fused ones.
        make: of linear layers.
    """

    def __init__(self, checkpoint: Checkpoint, make: MakeLinear) -> None:
        model: Any = checkpoint.model  # Any: the submodules of transformers' models are untyped
        base = model.base_model
        self._base = base
        self._has_languages = bool(checkpoint.languages)
        self._reads_last = model.config.summary_type in _READS_LAST
        heads = int(model.config.n_heads)
        *earlier, last = range(len(base.attentions))
        self._layers = [_layer(base, i, heads, make, last=False) for i in earlier]
        self._last = _layer(base, last, heads, make, last=True)
        self._head = model.sequence_summary if checkpoint.order is not None else nn.Identity()

    def places(self, packing: Packing) -> Ids:
        """The head reads the first token, or the last, as the configuration says."""
        return packing.lengths - np.int32(1) if self._reads_last else packed.first_places(packing)

    def states(self, rows: PackedRows, *, chosen_only: bool) -> Tensor:
        """Last hidden states."""
        base, packing = self._base, rows.packing
        x = base.embeddings(rows.tensor(packing.token_ids)) + base.position_embeddings(rows.tensor(packing.within))
        if self._has_languages:
            x = x + base.lang_embeddings(rows.tensor(_languages(rows)))
        x = base.layer_norm_emb(x)
        for layer in self._layers:
            x = layer(x, rows.attention)
        return self._last(x, rows.attention, chosen_only=chosen_only)

    def classify(self, states: Tensor) -> Tensor:
        """With the model's own head."""
        logits: Tensor = self._head(states.unsqueeze(1))
        return logits


def _languages(rows: PackedRows) -> Ids:
    """(tokens,): the language of the row that each belongs to. `worker.inference.tokens` gives every row one."""
    languages = [0 if row.language_id is None else row.language_id for row in rows.rows]
    return np.repeat(np.array(languages, dtype=np.int32), rows.packing.lengths)


def _layer(base: Any, i: int, heads: int, make: MakeLinear, *, last: bool) -> EncoderLayer:
    """From the modules that transformers keeps in lists beside one another."""
    attention, feed_forward = base.attentions[i], base.ffns[i]
    return EncoderLayer(
        project=Projection(fuse(attention.q_lin, attention.k_lin, attention.v_lin), heads, make, apart=last),
        out=make(attention.out_lin, None),
        norm_attention=Norm(base.layer_norm1[i]),
        up=make(feed_forward.lin1, feed_forward.act),
        down=make(feed_forward.lin2, None),
        norm_output=Norm(base.layer_norm2[i]),
    )
