from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.inference.forwards import varlen
from worker.inference.forwards import attention as attentions
from worker.inference.forwards import packing
from worker.inference.forwards.attention import RowAttention, runs
from worker.inference.forwards.packed import first_places
from worker.messages import Row

HEADS, SIZE = 2, 4
LENGTHS = (70, 63, 63, 50, 12, 12, 12, 1)
PLACES: dict[str, Callable[[int], int]] = {"first": lambda _: 0, "within": lambda n: n // 2, "last": lambda n: n - 1}


def attend_each_alone(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False, reach: int | None = None
) -> Tensor:
    """Softmax of scaled products, written out: (tokens, heads, size) of one row."""
    scores = torch.einsum("qhs,khs->hqk", query, key).div(SIZE**0.5)
    if causal:
        scores = scores.masked_fill(torch.ones(len(query), len(key)).triu(1).bool(), -torch.inf)
    if reach is not None:
        places = torch.arange(len(query))
        scores = scores.masked_fill((places.unsqueeze(1) - places).abs() > reach, -torch.inf)
    return torch.einsum("hqk,khs->qhs", scores.softmax(dim=-1), value)


@pytest.mark.parametrize("kernel", ["runs", "runs in tiles", "varlen"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("chosen_only", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_each_row_attends_to_itself_alone(
    kernel: str, place: str, monkeypatch: pytest.MonkeyPatch, *, chosen_only: bool, causal: bool
) -> None:
    monkeypatch.setattr(attentions, "varlen_attn", varlen.attend)
    rows = [Row(np.zeros(length, dtype=np.int32), length) for length in LENGTHS]
    packed = packing.pack(rows, rounds=kernel == "runs in tiles")
    query, key, value = torch.randn((3, packed.tokens, HEADS, SIZE), generator=torch.Generator().manual_seed(3))
    attention = RowAttention(
        packed,
        np.array([PLACES[place](length) for length in LENGTHS], dtype=np.int32),
        device=torch.device("cpu"),
        in_tiles=kernel == "runs in tiles",
        varlen=kernel == "varlen",
    )
    assert any(run.width > run.length for run in attention.runs) is (kernel == "runs in tiles")
    queries = query[attention.chosen] if chosen_only else query
    seen = attention(queries, key, value, chosen_only=chosen_only, causal=causal)
    for i, (start, length) in enumerate(zip(packed.bounds, LENGTHS, strict=False)):
        own = slice(start, start + length)
        alone = attend_each_alone(query[own], key[own], value[own], causal=causal)
        if chosen_only:
            torch.testing.assert_close(seen[i], alone[PLACES[place](length)])
        else:
            torch.testing.assert_close(seen[own], alone)
    if kernel != "varlen":
        assert not seen[len(LENGTHS) if chosen_only else packed.bounds[-1] :].any()


@pytest.mark.parametrize("kernel", ["runs", "runs in tiles", "varlen"])
@pytest.mark.parametrize("reach", [5, 64])
def test_each_token_sees_its_neighbourhood_alone(kernel: str, reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attentions, "varlen_attn", varlen.attend)
    lengths = (300, 128, 66, 65, 65, 63, 6, 1)
    packed = packing.pack(
        [Row(np.zeros(length, dtype=np.int32), length) for length in lengths], rounds=kernel == "runs in tiles"
    )
    query, key, value = torch.randn((3, packed.tokens, HEADS, SIZE), generator=torch.Generator().manual_seed(3))
    attention = RowAttention(
        packed,
        first_places(packed),
        device=torch.device("cpu"),
        in_tiles=kernel == "runs in tiles",
        varlen=kernel == "varlen",
    )
    seen = attention.nearby(query, key, value, reach=reach)
    for start, length in zip(packed.bounds, lengths, strict=False):
        own = slice(start, start + length)
        torch.testing.assert_close(seen[own], attend_each_alone(query[own], key[own], value[own], reach=reach))


def test_spare_rows_have_the_first_token() -> None:
    rows = [Row(np.zeros(3, dtype=np.int32), 3)] * 2
    packed = packing.pack(rows, rounds=True)
    attention = RowAttention(packed, np.array([1, 2], dtype=np.int32), device=torch.device("cpu"))
    assert attention.chosen.tolist() == [1, 5, *[0] * packed.spare_rows]


def test_no_window_reaches_past_the_sequence() -> None:
    (run,) = runs([63, 63], tokens=126)
    assert run.width == 63
    (run,) = runs([63, 63], tokens=127)
    assert run.width == 64
