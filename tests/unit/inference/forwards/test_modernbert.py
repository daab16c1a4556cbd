from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests import families as checkpoints
from tests.unit.inference.forwards import varlen
from tests.unit.inference.forwards.rows import row
from worker.inference.forwards import attention
from worker.inference.forwards.families import packed
from worker.inference.forwards.padded import Padded
from worker.inference.loading import load
from worker.messages import Pooling

KINDS: dict[str, dict[str, Any]] = {
    "mean": {},
    "CLS, biases": {"classifier_pooling": "cls", "attention_bias": True, "mlp_bias": True, "norm_bias": True},
    "last layer local": {"classifier_pooling": "cls", "num_hidden_layers": 3},
    "as wide as published": {"local_attention": 128},
}


SUITE = {("CLS, biases", "rounds"), ("last layer local", "varlen")}


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        pytest.param(kind, path, marks=() if (kind, path) in SUITE else pytest.mark.acceptance)
        for kind, path in itertools.product(KINDS, ("plain", "rounds", "varlen"))
    ],
)
def test_each_kind_is_what_transformers_computes(kind: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", varlen.attend)
    directory = checkpoints.checkpoint("modernbert", changes=tuple(KINDS[kind].items()))
    checkpoint = load(str(directory), device="cpu", precision="fp32", max_length=600, self_test="off", progress=False)
    rows = [row(checkpoint, i, length) for i, length in enumerate([600, 300, 129, 128, 65, 65, 30, 7, 7, 2, 1])]
    ours, padded = packed(checkpoint, rounds=path == "rounds", varlen=path == "varlen"), Padded(checkpoint)
    assert np.abs(ours.logits(rows) - padded.logits(rows)).max() < 1e-5
    for pooling in Pooling:
        assert np.abs(ours.pooled(rows, pooling) - padded.pooled(rows, pooling)).max() < 1e-5
