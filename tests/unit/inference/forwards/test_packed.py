"""What must hold of every packed family; one of each file stands for the others in the suite."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests import families as checkpoints
from tests.examples import examples
from tests.unit.inference.forwards import varlen
from tests.unit.inference.forwards.rows import lists_of_rows, open_checkpoint, row, shared_checkpoint
from worker.inference.forwards import attention, families
from worker.inference.forwards.families import Forward
from worker.inference.forwards.packed import Packed
from worker.inference.forwards.padded import Padded
from worker.messages import Pooling, Row

SUITE = {"bert", "bart", "deberta-v2", "modernbert", "xlm"}
FAMILIES = [
    pytest.param(family, marks=() if family in SUITE else pytest.mark.acceptance)
    for family in checkpoints.FAMILIES
    if checkpoints.model_type(family) in families.PACKED
]
ROWS = lists_of_rows((1, 40), most=8)
LONGER_ROWS = lists_of_rows((40, 70), most=6)


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def forward(family: str) -> Packed:
    return families.packed(shared_checkpoint(family))


def make(family: str, drawn: list[tuple[int, int]]) -> list[Row]:
    return [row(shared_checkpoint(family), seed, length) for seed, length in drawn]


def outputs(forward: Forward, rows: list[Row]) -> list[npt.NDArray[np.float32]]:
    return [forward.logits(rows), *(forward.pooled(rows, pooling) for pooling in Pooling)]


def close(one: list[npt.NDArray[np.float32]], other: list[npt.NDArray[np.float32]], within: float = 1e-4) -> bool:
    return all(a.shape == b.shape and np.abs(a - b).max() < within for a, b in zip(one, other, strict=True))


@settings(max_examples=examples(8))
@given(drawn=ROWS)
def test_rows_do_not_feel_their_neighbours(family: str, forward: Packed, drawn: list[tuple[int, int]]) -> None:
    rows = make(family, drawn)
    alone = [outputs(forward, [one]) for one in rows]
    assert close(outputs(forward, rows), [np.concatenate(parts) for parts in zip(*alone, strict=True)])


@settings(max_examples=examples(5))
@given(drawn=ROWS, data=st.data())
def test_the_order_of_rows_does_not_matter(
    family: str, forward: Packed, drawn: list[tuple[int, int]], data: st.DataObject
) -> None:
    rows = make(family, drawn)
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = outputs(forward, [rows[i] for i in order])
    assert close(shuffled, [whole[order] for whole in outputs(forward, rows)])


def test_it_computes_what_transformers_computes_of_each_row_alone(family: str, forward: Packed) -> None:
    rows = make(family, list(enumerate([1, 2, 30, 7, 7, 512, 7])))
    padded = Padded(shared_checkpoint(family))
    alone = [outputs(padded, [one]) for one in rows]
    assert close(outputs(forward, rows), [np.concatenate(parts) for parts in zip(*alone, strict=True)], within=1e-5)


@settings(max_examples=examples(5))
@given(drawn=ROWS | LONGER_ROWS)
def test_tails_and_windows_change_nothing(family: str, forward: Packed, drawn: list[tuple[int, int]]) -> None:
    rows = make(family, drawn)
    rounding = families.packed(shared_checkpoint(family), rounds=True)
    assert close(outputs(rounding, rows), outputs(forward, rows))


def test_the_path_of_cuda_computes_the_same(family: str, forward: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the kernel, for which a reference stands."""
    monkeypatch.setattr(attention, "varlen_attn", varlen.attend)
    rows = make(family, list(enumerate([40, 30, 30, 7, 3, 1])))
    assert close(outputs(families.packed(shared_checkpoint(family), varlen=True), rows), outputs(forward, rows), 1e-5)


@pytest.mark.parametrize("place", [pytest.param(0, marks=pytest.mark.acceptance), 3])
def test_a_row_that_gives_nan_spoils_none_that_looks_through_a_window(family: str, place: int) -> None:
    checkpoint = open_checkpoint(family)
    embeddings = checkpoint.model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    embeddings.weight[499] = torch.inf
    rows = make(family, list(enumerate([75, 70, 70, 70, 55, 50])))
    plain, rounding = families.packed(checkpoint, rounds=False), families.packed(checkpoint, rounds=True)
    rows[place].token_ids[1] = 499
    for expected, found in zip(outputs(plain, rows), outputs(rounding, rows), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.isfinite(np.delete(found, place, axis=0)).all()
    assert np.isnan(rounding.logits(rows)[place]).all()


def test_the_model_shares_the_fused_weights_and_computes_as_before(family: str) -> None:
    checkpoint = open_checkpoint(family)
    rows = make(family, [(1, 12)])
    before = Padded(checkpoint).logits(rows)
    sizes = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    families.packed(checkpoint)
    assert np.array_equal(Padded(checkpoint).logits(rows), before)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in checkpoint.model.parameters()}
    assert sum(storages.values()) == 4 * sizes


def test_slots_are_sums_where_packed_and_rectangles_where_padded() -> None:
    checkpoint, lengths = shared_checkpoint("bert"), np.array([9, 9, 4, 1])
    assert families.packed(checkpoint, rounds=False).slots(lengths).tolist() == [9, 18, 22, 23]
    assert Padded(checkpoint).slots(lengths).tolist() == [9, 18, 27, 36]
    assert Padded(checkpoint).slots(lengths[::-1]).tolist() == [1, 8, 27, 36]
