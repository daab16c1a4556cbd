"""What a loaded checkpoint is. `worker.inference.loading` makes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from worker.inference.precision import Precision
from worker.inference.scores import LabelOrder
from worker.messages import ModelIdentity, Pooling


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model ready to compute, and what must be known of it.

    Attributes:
        identity: what results call it.
        model: in eval mode, on ``device``, in `worker.inference.precision.dtype`, its parameters frozen.
        tokenizer: as transformers loads it; `worker.inference.tokens.Tokens` is how to use it.
        order: the classes among the logits; None where there is no classification head: it serves EMBED alone.
        device: where the model lies.
        precision: what to compute in.
        max_length: tokens in one sequence, special ones included.
        pad_id: the padding token's id.
        languages: language codes and the embeddings they choose (XLM); empty where the architecture has none.
        default_language: for requests that name none.
        pooling: of EMBED requests that name none.
        prompt: what stands before each text to embed; as a rule empty.
        after_pooling: what pooled vectors go through, (rows, hidden size) to (rows, dimensions), in float32, on
            ``device``; None: nothing.
        hidden_size: length of a token state, hence of an embedding that nothing follows.
        family: ``config.model_type``, such as "xlm-roberta".
    """

    identity: ModelIdentity
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    order: LabelOrder | None
    device: torch.device
    precision: Precision
    max_length: int
    pad_id: int
    languages: Mapping[str, int]
    default_language: str | None
    pooling: Pooling
    prompt: str
    after_pooling: nn.Module | None
    hidden_size: int
    family: str
