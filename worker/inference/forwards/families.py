"""Which forward runs which family. A family that stands in no line of the table is padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedConfig

from worker.inference.forwards import bart, deberta, encoder, linear, modernbert, xlm
from worker.inference.forwards.linear import MakeLinear
from worker.inference.forwards.packed import Packed, PackedModel
from worker.inference.forwards.padded import Padded
from worker.inference.model import Checkpoint
from worker.messages import Pooling, Row


class Forward(Protocol):
    """One pass of rows through the model."""

    def slots(self, lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Token slots, padding included, that the first one, two, ... rows of these lengths take together."""

    def logits(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        """Class logits, (rows, classes)."""

    def pooled(self, rows: Sequence[Row], pooling: Pooling) -> npt.NDArray[np.float32]:
        """One vector per row, (rows, hidden size), not normalised."""


@dataclass(frozen=True, slots=True)
class Family:
    """How a family is packed: whether a configuration can be, and the model over packed rows."""

    supports: Callable[[PreTrainedConfig], bool]
    make: Callable[[Checkpoint, MakeLinear], PackedModel]


PACKED: Mapping[str, Family] = MappingProxyType(
    {
        **dict.fromkeys(encoder.FAMILIES, Family(encoder.supports, encoder.Encoder)),
        **dict.fromkeys(bart.FAMILIES, Family(bart.supports, bart.Bart)),
        **dict.fromkeys(deberta.FAMILIES, Family(deberta.supports, deberta.Deberta)),
        **dict.fromkeys(modernbert.FAMILIES, Family(modernbert.supports, modernbert.ModernBert)),
        **dict.fromkeys(xlm.FAMILIES, Family(xlm.supports, xlm.Xlm)),
    }
)


def is_packed(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint of this configuration runs without padding."""
    family = PACKED.get(config.model_type)
    return family is not None and family.supports(config)


def choose(checkpoint: Checkpoint) -> Forward:
    """The checkpoint's forward: packed where its family can be, else padded."""
    return packed(checkpoint) if is_packed(checkpoint.model.config) else Padded(checkpoint)


def packed(checkpoint: Checkpoint, *, rounds: bool | None = None, varlen: bool | None = None) -> Packed:
    """The packed forward of a checkpoint that `is_packed`; the options are those of `Packed`."""
    make, family = linear.choose(checkpoint.device, checkpoint.precision), PACKED[checkpoint.family]
    if not checkpoint.precision.quantises:
        return Packed(checkpoint, family.make(checkpoint, make), rounds=rounds, varlen=varlen)
    replacing = linear.Replacing(make)
    model = family.make(checkpoint, replacing)
    replacing.release(checkpoint.model)
    return Packed(checkpoint, model, rounds=rounds, varlen=varlen)
