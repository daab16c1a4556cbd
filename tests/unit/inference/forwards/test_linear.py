from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from worker.inference.forwards.linear import Linear, OneDnnLinear, PlainLinear
from worker.inference.precision import Processor


@pytest.mark.skipif(not Processor.probe().amx_bf16, reason="the fused product is for CPUs with AMX")
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("residual", [True, False])
def test_the_fused_product_is_the_plain_one(activation: str | None, *, residual: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    linear = nn.Linear(64, 48).bfloat16().requires_grad_(requires_grad=False)
    x = torch.randn(10, 64, generator=generator).bfloat16()
    around = torch.randn(10, 48, generator=generator).bfloat16() if residual else None
    after = None if activation is None else ACT2FN[activation]
    steps: list[Linear] = [OneDnnLinear(linear, after), PlainLinear(linear, after)]
    fused, plain = (step(x, around) for step in steps)
    assert (fused.float() - plain.float()).abs().max() < 0.04  # two roundings to eight bits near 4
