"""Linear layers whose weights are kept in 4 bits, for the memory: a quarter of bfloat16. Shared by all families.

The weights are unpacked for each product. At 2,048 tokens that costs a quarter of a product in bfloat16 on a CPU with
AMX; torch's own product with 4-bit weights (``_weight_int4pack_mm_for_cpu``, which torchao calls) takes 14 to 18 times
as long there, because it multiplies one token after the other. One code runs on CPUs and on CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_GROUP = 32  # weights of one output that share a scale: 4.5 bits a weight with a scale of 16
_LEVELS = 16
_LOWEST = -8
# What the furthest weight of a group may stand for. -8 alone would be a step more than 7, on the side where it is
# needed; others clip it, which costs it precision and gives the rest some.
_DIVISORS = (-9.0, -8.5, -8.0, -7.5, -7.0, -6.5, -6.0)
_TINY = torch.finfo(torch.float32).tiny


class Int4Linear(nn.Module):
    """``x @ weight.T + bias`` over ``x`` of any shape (..., inputs), with weights of 16 levels.

    Each group of 32 weights has the scale whose square error is least. That error is some 8% of the weights' spread.
    What is multiplied is of the format of ``linear``.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.out_features, self.in_features = weight.shape
        self.bias = linear.bias
        codes, scales = _quantise(functional.pad(weight.float(), (0, -self.in_features % _GROUP)).view(-1, _GROUP))
        self._scales = scales.to(weight.dtype)
        self._codes = codes[:, 0::2].add(codes[:, 1::2] * _LEVELS).to(torch.uint8).view(-1)
        # The two weights that a byte stands for, as one number twice as wide: one look-up unpacks both.
        byte = torch.arange(_LEVELS * _LEVELS, device=weight.device)
        pairs = torch.stack([byte % _LEVELS, byte // _LEVELS], dim=1).add(_LOWEST).to(weight.dtype)
        self._pairs = pairs.view(torch.int64 if weight.dtype.itemsize == 4 else torch.int32).view(-1)

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), unpacked anew each time."""
        unpacked = torch.index_select(self._pairs, 0, self._codes.int()).view(self._scales.dtype)
        scaled = unpacked.view(-1, _GROUP).mul_(self._scales).view(self.out_features, -1)
        return scaled[:, : self.in_features].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Unpack, multiply, add the bias."""
        return functional.linear(x, self.weight, self.bias)


def _quantise(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of 0 to 15, int32 of the shape of ``groups``, (groups, 32), and scales, (groups, 1), float32."""
    furthest = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))
    best = torch.zeros_like(groups, dtype=torch.int32)
    best_scale, least = torch.zeros_like(furthest), torch.full_like(furthest, torch.inf)
    for divisor in _DIVISORS:
        scale = furthest / divisor
        scale = torch.where(scale.abs() < _TINY, torch.full_like(scale, _TINY), scale)
        codes = (groups / scale).round_().clamp_(_LOWEST, _LOWEST + _LEVELS - 1)
        error = (codes * scale - groups).square().sum(dim=1, keepdim=True)
        better = error < least
        best = torch.where(better, codes.int(), best)
        best_scale, least = torch.where(better, scale, best_scale), torch.where(better, error, least)
    return best - _LOWEST, best_scale
