"""The bare matrix products of a packed forward, to measure the engine against: no engine is faster than these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worker.inference.forwards import families, packing
from worker.inference.forwards.attention import RowAttention
from worker.inference.forwards.linear import Activation, Linear
from worker.inference.forwards.packed import PackedRows, first_places
from worker.inference.model import Checkpoint
from worker.messages import Row

_LENGTH = 8  # tokens of the row that is followed through the layers; more than one, to tell tokens from rows


def products(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """(outputs, inputs) of each linear layer that classifying runs over every token, in their order.

    What runs once a row, as most of the last layer does, is not among them. They are found by following one row through
    the forward on torch's meta device, where tensors have shapes and no numbers.

    Raises:
        ValueError: the checkpoint's forward is padded: it has the products that transformers chooses.
    """
    config = checkpoint.model.config
    if not families.is_packed(config):
        raise ValueError(f"the matrix products of {checkpoint.family} are those of transformers' own model")
    device = torch.device("meta")
    automatic: Any = type(checkpoint.model)
    with device:
        model = automatic(config).eval()
    found: list[tuple[int, int]] = []

    def follow(linear: nn.Linear, _activation: Activation | None) -> Linear:
        def multiply(x: Tensor, residual: Tensor | None = None) -> Tensor:  # noqa: ARG001 (as `Linear` has it)
            if len(x) == _LENGTH:
                found.append((linear.out_features, linear.in_features))
            return x.new_empty((len(x), linear.out_features))

        return multiply

    followed = families.PACKED[checkpoint.family].make(replace(checkpoint, model=model, device=device), follow)
    rows = [Row(np.zeros(_LENGTH, dtype=np.int32), _LENGTH)]
    packed = packing.pack(rows, rounds=False)
    attention = RowAttention(packed, first_places(packed), device=device)
    followed.states(PackedRows(rows, packed, attention, device), chosen_only=True)
    return found


def roofline(checkpoint: Checkpoint, tokens: int) -> Callable[[], None]:
    """The products that classifying so many tokens cannot do without, and nothing else.

    In the checkpoint's weight format, and so many tokens at a time as measured fastest.

    Raises:
        ValueError: the checkpoint's forward is padded.
    """
    device, dtype = checkpoint.device, checkpoint.model.dtype
    rows = 2048 if device.type == "cpu" else 16384
    # Weights of their own for each product: what a cache holds of one must not serve the next.
    weights = [torch.randn(shape, dtype=dtype, device=device) for shape in products(checkpoint)]
    states = {
        width: torch.randn((rows, width), dtype=dtype, device=device)
        for width in {weight.shape[1] for weight in weights}
    }

    @torch.inference_mode()
    def multiply() -> None:
        for start in range(0, tokens, rows):
            count = min(rows, tokens - start)
            for weight in weights:
                torch.mm(states[weight.shape[1]][:count], weight.T)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return multiply
