"""Linear layers in 8-bit integers, for CPUs that multiply those fast (VNNI, AMX-INT8). Shared by all families.

Weights are quantised once, with one scale per output; activations in each forward, with one scale per token. torch's
dynamic quantisation has one scale for the whole batch instead. With a scale per token a message's scores do not depend
on the messages that share its batch, and one token's outlier costs no other token its precision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The quantised product of oneDNN that torch's own compiler emits; torch.ao, which wraps it, is being moved elsewhere.
_product = torch.ops.onednn.qlinear_pointwise
_prepack = torch.ops.onednn.qlinear_prepack

_LARGEST = 127.0
_TINY = torch.finfo(torch.float32).tiny


class Int8Linear(nn.Module):
    """``x @ weight.T + bias`` over float32 ``x`` of any shape (..., inputs), computed in int8 with int32 sums.

    The error of an output is about 1/254 of the largest activation and weight it was made of, averaged over the inputs.
    Without VNNI, sums of two products may saturate at 16 bits inside the processor: results are wrong there.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(_TINY) / _LARGEST
        self._scale = scale
        self._zero = torch.zeros_like(scale, dtype=torch.int64)
        self._weight = _prepack(torch.round(weight / scale.unsqueeze(1)).to(torch.int8), None)
        bias = linear.bias
        self._bias = torch.zeros_like(scale) if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """Quantise each token, multiply, scale back."""
        tokens = x.reshape(-1, x.shape[-1])
        scale = tokens.abs().amax(dim=1, keepdim=True).clamp_min_(_TINY).div_(_LARGEST)
        quantised = torch.div(tokens, scale).round_().to(torch.int8)
        # Scale 1 and no bias: the token's own scale has to come before the bias, and oneDNN takes one scale for all.
        product = _product(
            quantised, 1.0, 0, self._weight, self._scale, self._zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return torch.addcmul(self._bias, product, scale).reshape(*x.shape[:-1], -1)
