from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests import families
from tests.examples import examples
from worker.inference.forwards import encoder
from worker.inference.forwards.encoder import Packed
from worker.inference.forwards.padded import Padded
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.messages import Pooling, Row


def open_checkpoint(family: str) -> Checkpoint:
    return load(
        str(families.checkpoint(family)),
        device="cpu",
        precision="fp32",
        self_test="off",
        default_language="en",
        progress=False,
    )


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint("bert")


@pytest.fixture(scope="module")
def forward(checkpoint: Checkpoint) -> Packed:
    return Packed(checkpoint)


def row(seed: int, length: int) -> Row:
    ids = np.random.default_rng(seed).integers(5, 400, length).astype(np.int32)
    return Row(ids, length // 2)


ROWS = st.lists(st.builds(row, st.integers(0, 99), st.integers(1, 40)), min_size=1, max_size=8)


@settings(max_examples=examples(40))
@given(ROWS)
def test_rows_do_not_feel_their_neighbours(forward: Packed, rows: list[Row]) -> None:
    together, alone = forward.logits(rows), np.concatenate([forward.logits([one]) for one in rows])
    assert np.abs(together - alone).max() < 1e-4
    for pooling in Pooling:
        together = forward.pooled(rows, pooling)
        alone = np.concatenate([forward.pooled([one], pooling) for one in rows])
        assert np.abs(together - alone).max() < 1e-4


def test_it_computes_what_the_padded_forward_computes(checkpoint: Checkpoint, forward: Packed) -> None:
    rows = [row(i, length) for i, length in enumerate([1, 2, 30, 7, 7, 512, 7])]
    padded = Padded(checkpoint)
    assert np.abs(forward.logits(rows) - padded.logits(rows)).max() < 1e-4
    assert np.abs(forward.pooled(rows, Pooling.CLS) - padded.pooled(rows, Pooling.CLS)).max() < 1e-5
    assert np.abs(forward.pooled(rows, Pooling.MEAN) - padded.pooled(rows, Pooling.MEAN)).max() < 1e-5


def test_slots_are_sums_where_packed_and_rectangles_where_padded(checkpoint: Checkpoint, forward: Packed) -> None:
    lengths = np.array([9, 9, 4, 1])
    assert forward.slots(lengths).tolist() == [9, 18, 22, 23]
    assert Padded(checkpoint).slots(lengths).tolist() == [9, 18, 27, 36]
    assert Padded(checkpoint).slots(lengths[::-1]).tolist() == [1, 8, 27, 36]


LONGER_ROWS = st.lists(st.builds(row, st.integers(0, 99), st.integers(40, 70)), min_size=1, max_size=6)


@settings(max_examples=examples(20))
@given(ROWS | LONGER_ROWS)
def test_tails_and_windows_change_nothing(checkpoint: Checkpoint, forward: Packed, rows: list[Row]) -> None:
    rounding = Packed(checkpoint, rounds=True)
    pairs = [(rounding.logits(rows), forward.logits(rows))]
    pairs += [(rounding.pooled(rows, pooling), forward.pooled(rows, pooling)) for pooling in Pooling]
    for with_tail, without in pairs:
        assert with_tail.shape == without.shape
        assert np.abs(with_tail - without).max() < 1e-4


@pytest.mark.parametrize("place", [0, 3, 5])
def test_a_row_that_gives_nan_spoils_none_that_looks_through_a_window(place: int) -> None:
    checkpoint = open_checkpoint("bert")
    embeddings = checkpoint.model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    embeddings.weight[499] = torch.inf
    rows = [row(i, length) for i, length in enumerate([75, 70, 70, 70, 55, 50])]
    rounding, plain = Packed(checkpoint, rounds=True), Packed(checkpoint, rounds=False)
    rows[place].token_ids[-1] = 499
    pairs = [(plain.logits(rows), rounding.logits(rows))]
    pairs += [(plain.pooled(rows, pooling), rounding.pooled(rows, pooling)) for pooling in Pooling]
    for expected, found in pairs:
        assert np.isnan(found[place]).all()
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.isfinite(np.delete(found, place, axis=0)).all()


@pytest.mark.parametrize("family", ["xlm-roberta", "distilbert"])
def test_the_model_shares_the_fused_weights_and_computes_as_before(family: str) -> None:
    checkpoint = open_checkpoint(family)
    rows = [row(1, 12), row(2, 30)]
    before = Padded(checkpoint).logits(rows)
    sizes = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    Packed(checkpoint)
    assert np.array_equal(Padded(checkpoint).logits(rows), before)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in checkpoint.model.parameters()}
    assert sum(storages.values()) == 4 * sizes


def test_only_the_bert_family_is_packed() -> None:
    assert {family for family in families.FAMILIES if encoder.supports(open_checkpoint(family))} == {
        "xlm-roberta",
        "roberta",
        "bert",
        "distilbert",
        "minilm",
    }
