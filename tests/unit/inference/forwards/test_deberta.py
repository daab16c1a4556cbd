from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests import families as checkpoints
from tests.unit.inference.forwards.rows import row
from worker.inference.forwards import linear
from worker.inference.forwards.deberta import Deberta, Distances
from worker.inference.forwards.packed import Packed
from worker.inference.forwards.padded import Padded
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.messages import Pooling

# Version 2 as it may be configured, where that computes something else than version 3.
KINDS: dict[str, dict[str, Any]] = {
    "version 3": {},
    "own keys": {"share_att_key": False, "norm_rel_ebd": "none"},
    "all distances": {"position_buckets": -1, "max_relative_positions": 24},
    "positions and types": {"position_biased_input": True, "type_vocab_size": 2, "max_position_embeddings": 600},
}
SUITE = {("own keys", False), ("version 3", True)}  # in tiles, as on CUDA


def open_checkpoint(**changes: Any) -> Checkpoint:
    directory = checkpoints.checkpoint("deberta-v2", changes=tuple(changes.items()))
    return load(str(directory), device="cpu", precision="fp32", max_length=600, self_test="off", progress=False)


def packed(checkpoint: Checkpoint, *, in_tiles: bool = False) -> Packed:
    make = linear.choose(checkpoint.device, checkpoint.precision)
    return Packed(checkpoint, Deberta(checkpoint, make, in_tiles=in_tiles), rounds=in_tiles)


@pytest.mark.parametrize(
    ("kind", "in_tiles"),
    [
        pytest.param(kind, in_tiles, marks=() if (kind, in_tiles) in SUITE else pytest.mark.acceptance)
        for kind, in_tiles in itertools.product(KINDS, (False, True))
    ],
)
def test_each_kind_is_what_transformers_computes(kind: str, *, in_tiles: bool) -> None:
    checkpoint = open_checkpoint(**KINDS[kind])
    rows = [row(checkpoint, i, length) for i, length in enumerate([600, 300, 290, 150, 30, 28, 28, 7, 7, 2, 1])]
    ours, padded = packed(checkpoint, in_tiles=in_tiles), Padded(checkpoint)
    assert np.abs(ours.logits(rows) - padded.logits(rows)).max() < 1e-5
    assert np.abs(ours.pooled(rows, Pooling.CLS) - padded.pooled(rows, Pooling.CLS)).max() < 1e-5
    assert np.abs(ours.pooled(rows, Pooling.MEAN) - padded.pooled(rows, Pooling.MEAN)).max() < 1e-5


@pytest.mark.parametrize("in_tiles", [False, True])
def test_a_row_that_gives_nan_spoils_none_of_its_group(*, in_tiles: bool) -> None:
    checkpoint = open_checkpoint()
    embeddings = checkpoint.model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    embeddings.weight[499] = torch.inf
    rows = [row(checkpoint, i, length) for i, length in enumerate([20, 19, 19, 18])]
    rows[1].token_ids[-1] = 499
    logits = packed(checkpoint, in_tiles=in_tiles).logits(rows)
    assert np.isnan(logits[1]).all()
    assert np.isfinite(np.delete(logits, 1, axis=0)).all()


def test_far_distances_share_a_number() -> None:
    index = Distances(span=256, buckets=256, farthest=512).index(512, torch.device("cpu"))
    assert index[511 - 128 : 511 + 129].tolist() == list(range(128, 385))
    assert index.diff().min() == 0
    assert 0 < index[0] < 20
    assert 492 < index[-1] < 512


def test_a_convolution_would_mix_neighbours() -> None:
    checkpoint = open_checkpoint(conv_kernel_size=3, conv_act="gelu")
    rows = [row(checkpoint, 1, 12), row(checkpoint, 2, 30)]
    padded = Padded(checkpoint)
    assert np.abs(padded.logits(rows) - np.concatenate([padded.logits([one]) for one in rows])).max() < 1e-4
    assert np.abs(padded.logits(rows) - packed(checkpoint).logits(rows)).max() > 1e-2
