"""The padded forward: transformers' own model over rows padded to the longest of the slice. For every architecture.

The engine hands it slices of rows of similar length, so little of a slice is padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worker.inference import served_families
from worker.inference.forwards.linear import quantise
from worker.inference.model import Checkpoint
from worker.messages import Pooling, Row


class Padded:
    """A `worker.inference.forwards.families.Forward` that runs the checkpoint's model as transformers does."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = checkpoint.model
        base: Any = checkpoint.model.base_model
        self._base = base
        if checkpoint.precision.quantises:
            quantise(self._base, checkpoint.precision)
        self._device = checkpoint.device
        self._pad_id = checkpoint.pad_id
        accepted = inspect.signature(self._base.forward).parameters
        # RoBERTa has one token type only, DeBERTa v3 none; XLM would add the *word* embeddings of the ids 0 and 1.
        self._token_types = "token_type_ids" in accepted and getattr(self._model.config, "type_vocab_size", 0) > 1
        self._languages = "langs" in accepted
        # T5's decoder begins with nothing of its own accord; its encoder's states are what sentence-t5 pools.
        self._states = base.get_encoder() if checkpoint.family in served_families.RELATIVE else base
        # An encoder-decoder would otherwise keep keys and values for a generation that never comes.
        self._options = {"use_cache": False} if "use_cache" in accepted else {}

    def slots(self, lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Rows times the longest row, for the first one, two, ... of ``lengths``."""
        return np.maximum.accumulate(lengths) * np.arange(1, len(lengths) + 1)

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        """Class logits, (rows, classes)."""
        logits: torch.Tensor = self._model(**self.inputs(rows), **self._options).logits
        return logits.float().numpy(force=True)

    @torch.inference_mode()
    def pooled(self, rows: Sequence[Row], pooling: Pooling) -> npt.NDArray[np.float32]:
        """The base model's last hidden states as one vector per row, (rows, hidden size), not normalised.

        MEAN is over all tokens of the row, special ones included, as sentence-transformers pools. For encoder-decoders
        the last hidden states are the decoder's, as the plain transformers model returns them, but for T5's encoder.
        """
        inputs = self.inputs(rows)
        states: torch.Tensor = self._states(**inputs, **self._options).last_hidden_state
        if pooling is Pooling.CLS:
            return states[:, 0].float().numpy(force=True)
        mask = inputs["attention_mask"].unsqueeze(-1)
        return ((states.float() * mask).sum(dim=1) / mask.sum(dim=1)).numpy(force=True)

    def inputs(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The rows as the model takes them: (rows, longest row), on the device."""
        shape = (len(rows), max(len(row.token_ids) for row in rows))
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        token_types = np.zeros(shape, dtype=np.int64)
        for i, row in enumerate(rows):
            length = len(row.token_ids)
            ids[i, :length] = row.token_ids
            mask[i, :length] = 1
            token_types[i, row.segment_at : length] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._token_types:
            inputs["token_type_ids"] = token_types
        if self._languages and rows[0].language_id is not None:
            # One language per row, for its padding too: attention never looks there.
            inputs["langs"] = np.broadcast_to([[row.language_id] for row in rows], shape).astype(np.int64)
        return {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
