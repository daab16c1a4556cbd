from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from worker.inference.forwards.attention import RowAttention, runs

HEADS, SIZE = 2, 4
LENGTHS = [70, 63, 63, 50, 12, 12, 12, 1]


def attend_each_alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax of scaled products, written out: (tokens, heads, size) of one row."""
    weights = torch.einsum("qhs,khs->hqk", query, key).div(SIZE**0.5).softmax(dim=-1)
    return torch.einsum("hqk,khs->qhs", weights, value)


@pytest.mark.parametrize("in_tiles", [True, False])
@pytest.mark.parametrize("first_only", [True, False])
def test_each_row_attends_to_itself_alone(*, in_tiles: bool, first_only: bool) -> None:
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    tokens = int(bounds[-1]) + 30  # spare ones behind the last row
    query, key, value = torch.randn((3, tokens, HEADS, SIZE), generator=torch.Generator().manual_seed(3))
    found = runs(LENGTHS, tokens=tokens if in_tiles else 0)
    assert any(run.width > run.length for run in found) is in_tiles
    attention = RowAttention(bounds, found, spare_rows=2, varlen=False)
    assert attention.first.tolist() == [*bounds[:-1].tolist(), 0, 0]
    seen = attention(query[attention.first] if first_only else query, key, value, first_only=first_only)
    for i, (start, stop) in enumerate(pairwise(bounds.tolist())):
        alone = attend_each_alone(query[start:stop], key[start:stop], value[start:stop])
        if first_only:
            torch.testing.assert_close(seen[i], alone[0])
        else:
            torch.testing.assert_close(seen[start:stop], alone)
    assert not seen[len(LENGTHS) if first_only else int(bounds[-1]) :].any()


def test_no_window_reaches_past_the_sequence() -> None:
    (run,) = runs([63, 63], tokens=126)
    assert run.width == 63
    (run,) = runs([63, 63], tokens=127)
    assert run.width == 64
