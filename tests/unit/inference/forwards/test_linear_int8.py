from __future__ import annotations

import pytest
import torch
from torch import nn

from worker.inference.forwards.linear_int8 import Int8Linear
from worker.inference.precision import Processor

pytestmark = pytest.mark.skipif(not Processor.probe().vnni, reason="int8 is for CPUs with VNNI")


@pytest.fixture
def linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(96, 40).requires_grad_(requires_grad=False)


def test_it_is_the_linear_layer_to_within_its_steps(linear: nn.Linear) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 7, 96, generator=generator)
    got, exact = Int8Linear(linear)(x), linear(x)
    assert got.shape == exact.shape
    # Steps of a 254th of the largest value, uniformly wrong by up to a half, 96 of them added up.
    step = x.abs().amax() / 127 * linear.weight.abs().amax() + linear.weight.abs().amax() / 127 * x.abs().amax()
    assert (got - exact).abs().max() < step * 96**0.5
    assert (got - exact).abs().max() > 0


def test_a_token_does_not_feel_its_neighbours(linear: nn.Linear) -> None:
    int8 = Int8Linear(linear)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(9, 96, generator=generator)
    alone = torch.cat([int8(token.unsqueeze(0)) for token in x])
    x_and_giant = torch.cat([x, 1e4 * torch.ones(1, 96)])
    assert torch.equal(int8(x_and_giant)[:9], alone)


def test_zeros_give_the_bias(linear: nn.Linear) -> None:
    assert torch.equal(Int8Linear(linear)(torch.zeros(2, 96)), linear.bias.expand(2, 40))
