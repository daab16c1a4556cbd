from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import row
from worker.inference.rows import flatten, row_key
from worker.messages import Row


def test_a_pair_is_kept_once_within_a_request_and_across_requests() -> None:
    flat = flatten([[row(1, 2, 3), row(4, 5)], [row(4, 5), row(1, 2, 3), row(4, 5)]])
    assert [r.token_ids.tolist() for r in flat.rows] == [[1, 2, 3], [4, 5]]
    first, second = flat.restore(np.array([[10.0], [20.0]], dtype=np.float32))
    assert first.tolist() == [[10.0], [20.0]]
    assert second.tolist() == [[20.0], [10.0], [20.0]]


def test_what_the_model_sees_differently_is_not_the_same_row() -> None:
    rows = [
        row(1, 2, 3),
        row(1, 2),
        row(1, 2, 4),
        row(1, 2, 3, segment_at=1),
        row(1, 2, 3, language_id=0),
        row(1, 2, 3, language_id=1),
        row(1, 2, 3, segment_at=12),
        row(1, 2, 3, segment_at=1, language_id=2),
    ]
    assert len({row_key(r) for r in rows}) == len(rows)
    assert flatten([rows]).rows == tuple(rows)


def test_requests_without_rows_get_nothing() -> None:
    flat = flatten([[], [row(1)], []])
    assert [len(part) for part in flat.restore(np.zeros((1, 3), dtype=np.float32))] == [0, 1, 0]


rows = st.builds(
    lambda ids, at: row(*ids, segment_at=at), st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(0, 1)
)


@given(st.lists(st.lists(rows, max_size=5), max_size=6))
def test_each_request_gets_what_its_own_rows_would_have_got(requests: list[list[Row]]) -> None:
    def result(r: Row) -> list[float]:
        return [float(r.token_ids.sum()), float(len(r.token_ids)), float(r.segment_at)]

    flat = flatten(requests)
    results = np.array([result(r) for r in flat.rows], dtype=np.float32).reshape(-1, 3)
    assert len(set(flat.keys)) == len(flat.keys) == len(flat.rows)
    assert [part.tolist() for part in flat.restore(results)] == [[result(r) for r in request] for request in requests]
