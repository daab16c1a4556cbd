from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from worker.inference.forwards.linear_int4 import Int4Linear


def layer(inputs: int, outputs: int, *, seed: int = 3, dtype: torch.dtype = torch.float32) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs).to(dtype).requires_grad_(requires_grad=False)


def off(got: Tensor, exact: Tensor) -> float:
    """Root of the mean square of the difference, to that of what is exact."""
    return float((got - exact).float().square().mean().sqrt() / exact.float().square().mean().sqrt())


@given(inputs=st.integers(1, 100), outputs=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_no_weight_is_further_off_than_a_step_of_its_group(inputs: int, outputs: int, seed: int) -> None:
    linear = layer(inputs, outputs, seed=seed)
    got, exact = Int4Linear(linear).weight, linear.weight
    assert got.shape == exact.shape
    for start in range(0, inputs, 32):
        group, unpacked = exact[:, start : start + 32], got[:, start : start + 32]
        # 16 levels; at worst the furthest weight is clipped by what the smallest divisor leaves out.
        assert ((unpacked - group).abs() <= group.abs().amax(dim=1, keepdim=True) / 6 + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_keeps_normal_weights_to_a_twelfth_of_their_spread(dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        linear = nn.Linear(768, 96, bias=False)
        nn.init.normal_(linear.weight, std=0.02)
    int4 = Int4Linear(linear.to(dtype).requires_grad_(requires_grad=False))
    assert int4.weight.dtype is dtype
    assert off(int4.weight, linear.weight) < 1 / 12


def test_levels_that_fit_are_kept_exactly() -> None:
    linear = nn.Linear(32, 2, bias=False).requires_grad_(requires_grad=False)
    linear.weight.copy_(torch.stack([torch.arange(-8, 8).repeat(2) / 16, torch.zeros(32)]))
    assert torch.equal(Int4Linear(linear).weight, linear.weight)


def test_it_multiplies_with_what_it_unpacks_and_adds_the_bias() -> None:
    linear = layer(96, 40)
    int4 = Int4Linear(linear)
    x = torch.randn(4, 7, 96, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(int4(x), x @ int4.weight.T + linear.bias)


def test_it_takes_four_and_a_half_bits_a_weight() -> None:
    linear = layer(768, 768, dtype=torch.bfloat16)
    kept = {id(value): value for value in vars(Int4Linear(linear)).values() if isinstance(value, Tensor)}
    table = 256 * 4
    assert sum(value.nbytes for value in kept.values()) - table == 768 * 768 * 4.5 / 8
