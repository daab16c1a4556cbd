"""The packed forward: rows end to end in one sequence, nothing padded. What its families share.

A family's file says what its layers and its head compute (`PackedModel`), with the model's own modules or on views of
their weights, so that these stay in one place. Attention keeps to each row (`worker.inference.forwards.attention`);
everything else in a transformer layer looks at one token at a time, whatever row its neighbours belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.inference.forwards import linear as linears
from worker.inference.forwards import packing as packings
from worker.inference.forwards.attention import RowAttention
from worker.inference.forwards.packing import Ids, Packing
from worker.inference.model import Checkpoint
from worker.messages import Pooling, Row


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows of one forward, as a model's layers take them.

    Attributes:
        rows: as the engine gave them.
        packing: where each lies in the sequence.
        attention: within each row; it knows the chosen tokens.
        device: of the model.
    """

    rows: Sequence[Row]
    packing: Packing
    attention: RowAttention
    device: torch.device

    def tensor(self, ids: Ids) -> Tensor:
        """(tokens,) to the device, with zeros for spare tokens."""
        return torch.from_numpy(self.packing.pad(ids)).to(self.device)


class PackedModel(Protocol):
    """What a family computes over packed rows."""

    def places(self, packing: Packing) -> Ids | None:
        """(rows,): where in each row the token stands that the head reads, from 0; None: it reads the mean of all."""

    def states(self, rows: PackedRows, *, chosen_only: bool) -> Tensor:
        """Last hidden states: of all tokens, (tokens, hidden size), or of each row's chosen one, (rows, hidden size).

        Those of spare tokens or spare rows follow.
        """

    def classify(self, states: Tensor) -> Tensor:
        """From the states that the head reads, (rows, hidden size), to the logits, (rows, classes)."""


def first_places(packing: Packing) -> Ids:
    """The place of each row's first token (CLS)."""
    return np.zeros_like(packing.lengths)


class Packed:
    """A `worker.inference.forwards.families.Forward` without padding.

    Args:
        checkpoint: whose device and precision apply.
        model: what to compute, of this checkpoint's weights.
        rounds: whether sequences get a length that is one of few, and attention whole tiles; None: where oneDNN
            multiplies.
        varlen: whether attention is torch's varlen kernel; None: where there is one, on CUDA in half precision.
    """

    def __init__(
        self, checkpoint: Checkpoint, model: PackedModel, *, rounds: bool | None = None, varlen: bool | None = None
    ) -> None:
        self._device = checkpoint.device
        self._dtype = checkpoint.model.dtype
        self._model = model
        self._rounds = linears.by_onednn(checkpoint.device, checkpoint.precision) if rounds is None else rounds
        halves = checkpoint.model.dtype in {torch.float16, torch.bfloat16}
        self._varlen = checkpoint.device.type == "cuda" and halves if varlen is None else varlen

    def slots(self, lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """The sum of the first one, two, ... of ``lengths``: rows are not padded, their sum may be rounded."""
        return packings.slots(lengths, rounds=self._rounds)

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        """Class logits, (rows, classes)."""
        packing = packings.pack(rows, rounds=self._rounds)
        places = self._model.places(packing)
        if places is None:
            states = self._means(rows, packing).to(self._dtype)
        else:
            states = self._states(rows, packing, places, chosen_only=True)
        logits: npt.NDArray[np.float32] = self._model.classify(states)[: len(rows)].float().numpy(force=True)
        return logits

    @torch.inference_mode()
    def pooled(self, rows: Sequence[Row], pooling: Pooling) -> npt.NDArray[np.float32]:
        """The last hidden states as one vector per row, (rows, hidden size), not normalised.

        MEAN is over all tokens of the row, special ones included, as sentence-transformers pools.
        """
        packing = packings.pack(rows, rounds=self._rounds)
        if pooling is Pooling.MEAN:
            return self._means(rows, packing).numpy(force=True)
        states = self._states(rows, packing, first_places(packing), chosen_only=True)
        return states[: len(rows)].float().numpy(force=True)

    def _means(self, rows: Sequence[Row], packing: Packing) -> Tensor:
        """The mean of each row's last hidden states, (rows, hidden size), in float32."""
        states = self._states(rows, packing, first_places(packing), chosen_only=False)
        bounds = torch.from_numpy(packing.bounds).to(self._device)
        own = states[: len(packing.within)].float()
        return torch.segment_reduce(own, "mean", offsets=bounds.long(), axis=0)

    def _states(self, rows: Sequence[Row], packing: Packing, places: Ids, *, chosen_only: bool) -> Tensor:
        def compute(*, in_tiles: bool) -> Tensor:
            attention = RowAttention(packing, places, device=self._device, in_tiles=in_tiles, varlen=self._varlen)
            return self._model.states(PackedRows(rows, packing, attention, self._device), chosen_only=chosen_only)

        states = compute(in_tiles=self._rounds)
        if self._rounds and not states.isfinite().all():
            # A window reads on into the next row, under a mask that gives it weights of zero, and zero times what is
            # not finite is NaN. So that a row with NaN spoils no neighbour, each row now sees nothing but itself.
            states = compute(in_tiles=False)
        return states
