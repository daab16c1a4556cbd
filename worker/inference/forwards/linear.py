"""A linear layer with what follows it, as this device multiplies it fastest. Shared by every packed family.

A transformer layer has four of them. An activation or the sum with the residual, as a step of its own, costs one more
pass over memory; the product may do it on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from worker.inference.forwards.linear_int4 import Int4Linear
from worker.inference.forwards.linear_int8 import Int8Linear
from worker.inference.precision import Precision, Processor

Activation = Callable[[Tensor], Tensor]


class Linear(Protocol):
    """``activation(x @ weight.T + bias) + residual`` over ``x`` of (tokens, inputs)."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(tokens, outputs); ``residual`` has that shape too."""


MakeLinear = Callable[[nn.Linear, Activation | None], Linear]


def choose(device: torch.device, precision: Precision) -> MakeLinear:
    """How to make the linear layers of a model on this device in this precision."""
    if precision is Precision.INT8:
        return lambda linear, activation: PlainLinear(Int8Linear(linear), activation)
    multiplier = OneDnnLinear if by_onednn(device, precision) else PlainLinear
    if precision is Precision.INT4:
        return lambda linear, activation: multiplier(Int4Linear(linear), activation)
    return multiplier


def by_onednn(device: torch.device, precision: Precision) -> bool:
    """Whether oneDNN multiplies, which builds and keeps a primitive for each shape."""
    if precision in {Precision.BF16, Precision.INT4}:
        return device.type == "cpu" and Processor.probe().amx_bf16
    return precision is Precision.INT8


def quantise(module: nn.Module, precision: Precision) -> None:
    """Replace every linear layer below ``module`` by its quantised form, in place.

    For models that are run as they are; a packed forward makes its layers by `choose`. Poolers are left: they run once
    a row.
    """
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child) if precision is Precision.INT8 else Int4Linear(child))
        elif name != "pooler":
            quantise(child, precision)


class Replacing:
    """Makes quantised linear layers, and drops the weights that they were made of.

    Args:
        make: of linear layers that keep nothing of those that they are made of.
    """

    def __init__(self, make: MakeLinear) -> None:
        self._make = make
        self._replaced: set[int] = set()

    def __call__(self, linear: nn.Linear, activation: Activation | None) -> Linear:
        """As `MakeLinear`."""
        self._replaced.add(linear.weight.untyped_storage().data_ptr())
        return self._make(linear, activation)

    def release(self, model: nn.Module) -> None:
        """Drop the weights of the linear layers below ``model`` that were replaced, or fused into one that was.

        They keep their shapes, on torch's meta device: whatever would still compute with them says so.
        """
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer.weight.untyped_storage().data_ptr() in self._replaced:
                layer.weight = nn.Parameter(layer.weight.to("meta"), requires_grad=False)


def fuse(*layers: nn.Linear) -> nn.Linear:
    """One linear layer in place of several over the same input. Their weights become views of its own, not copies."""
    sizes = [layer.out_features for layer in layers]
    fused = nn.Linear(layers[0].in_features, sum(sizes), device="meta").requires_grad_(requires_grad=False)
    for name in ("weight", "bias"):
        whole = torch.cat([getattr(layer, name) for layer in layers])
        setattr(fused, name, nn.Parameter(whole, requires_grad=False))
        for layer, part in zip(layers, torch.split(whole, sizes), strict=True):
            setattr(layer, name, nn.Parameter(part, requires_grad=False))
    return fused


def rows_of(linear: nn.Linear, start: int, end: int) -> nn.Linear:
    """The outputs ``start:end`` of a linear layer, as one whose weights are views of its own."""
    part = nn.Linear(linear.in_features, end - start, bias=False, device="meta")
    part.weight = nn.Parameter(linear.weight[start:end], requires_grad=False)
    part.bias = None if linear.bias is None else nn.Parameter(linear.bias[start:end], requires_grad=False)
    return part


class PlainLinear:
    """One step after the other. ``linear`` is a layer of torch's or of ours."""

    def __init__(self, linear: Callable[[Tensor], Tensor], activation: Activation | None = None) -> None:
        self._linear = linear
        self._activation = activation

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Multiply, activate, add."""
        x = self._linear(x)
        if self._activation is not None:
            x = self._activation(x)
        return x if residual is None else x + residual


class OneDnnLinear:
    """One oneDNN call, the one that torch's own compiler emits for these steps.

    In bfloat16 on a CPU with AMX the product is so fast that bias, GELU and sum, as steps of their own, were a fifth of
    the forward. In float32 fusing them is not worth it.
    """

    def __init__(self, linear: nn.Linear | Int4Linear, activation: Activation | None = None) -> None:
        self._linear = linear
        self._gelu = isinstance(activation, GELUActivation)  # in its exact form, not the tanh one
        self._activation = None if self._gelu else activation

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Multiply, activate and add at once, but for an activation that oneDNN is not asked for."""
        onednn = torch.ops.mkldnn
        weight, bias = self._linear.weight, self._linear.bias
        if residual is not None and not self._gelu and self._activation is None:
            added: Tensor = onednn._linear_pointwise.binary(x, residual, weight, bias, "add")  # noqa: SLF001 (it has no other name)
            return added
        name, algorithm = ("gelu", "none") if self._gelu else ("none", "")
        y: Tensor = onednn._linear_pointwise(x, weight, bias, name, [], algorithm)  # noqa: SLF001 (as above)
        if self._activation is not None:
            y = self._activation(y)
        return y if residual is None else y + residual
