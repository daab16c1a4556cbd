from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from worker.inference.forwards.linear import Linear, OneDnnLinear, PlainLinear, Replacing, fuse, quantise
from worker.inference.forwards.linear_int4 import Int4Linear
from worker.inference.precision import Precision, Processor


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


@pytest.mark.parametrize(
    ("precision", "name"),
    [
        (Precision.INT4, "Int4Linear"),
        pytest.param(
            Precision.INT8,
            "Int8Linear",
            marks=pytest.mark.skipif(not Processor.probe().vnni, reason="int8 is for CPUs with VNNI"),
        ),
    ],
)
def test_only_poolers_are_not_quantised(precision: Precision, name: str) -> None:
    model = nn.ModuleDict(
        {
            "layer": nn.ModuleList([nn.Linear(8, 8), nn.LayerNorm(8)]),
            "pooler": nn.ModuleDict({"dense": nn.Linear(8, 8)}),
        }
    )
    quantise(model, precision)
    assert [type(module).__name__ for module in model.modules() if not list(module.children())] == [
        name,
        "LayerNorm",
        "Linear",
    ]


def test_weights_that_were_replaced_are_dropped_and_no_others() -> None:
    query, key, head = (nn.Linear(32, 32).requires_grad_(requires_grad=False) for _ in range(3))
    model, x = nn.ModuleList([query, key, head]), torch.ones(1, 32)
    before = head(x)
    replacing = Replacing(lambda linear, activation: PlainLinear(Int4Linear(linear), activation))
    made = replacing(fuse(query, key), None)
    exact = torch.cat([query(x), key(x)], dim=1)
    replacing.release(model)
    assert [layer.weight.device.type for layer in (query, key, head)] == ["meta", "meta", "cpu"]
    assert query.weight.shape == (32, 32)
    assert (made(x) - exact).abs().max() < 0.2
    assert torch.equal(head(x), before)
