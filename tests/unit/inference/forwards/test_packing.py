from __future__ import annotations

import numpy as np

from worker.inference.forwards import packing
from worker.messages import Row


def test_rounded_lengths_are_few_and_near() -> None:
    sums = packing.slots(np.ones(16_384, np.intp), rounds=True)
    counts = np.arange(1, 16_385)
    assert np.all(np.diff(sums) >= 0)
    assert np.all((sums >= counts) & (sums <= counts + np.maximum(127, counts // 4)))
    assert np.mean((sums / counts)[1024:]) < 1.1
    assert len(set(sums.tolist())) <= 32, "each is a handful of oneDNN's primitives"


def test_rows_lie_end_to_end() -> None:
    rows = [Row(np.array(ids, np.int32), at) for ids, at in (([7, 8, 9], 2), ([5], 1), ([3, 4], 1))]
    packed = packing.pack(rows, rounds=False)
    assert packed.token_ids.tolist() == [7, 8, 9, 5, 3, 4]
    assert packed.within.tolist() == [0, 1, 2, 0, 0, 1]
    assert packed.bounds.tolist() == [0, 3, 4, 6]
    assert packed.segments(rows).tolist() == [0, 0, 1, 0, 0, 1]
    assert (packed.tokens, packed.spare_tokens, packed.spare_rows) == (6, 0, 0)
    rounded = packing.pack(rows, rounds=True)
    assert (rounded.tokens, rounded.spare_tokens, rounded.spare_rows) == (128, 122, 13)
    assert rounded.pad(rounded.token_ids).tolist() == [7, 8, 9, 5, 3, 4] + [0] * 122
