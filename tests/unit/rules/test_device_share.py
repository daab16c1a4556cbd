from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.rules.device_share import DeviceShare


@given(
    share=st.floats(0.05, 0.95),
    calls=st.lists(st.integers(1, 300), min_size=1, max_size=300),
    batches=st.lists(st.integers(1, 100), min_size=1, max_size=50),
)
def test_with_a_backlog_calls_never_get_more_than_their_share_and_what_one_call_and_a_batch_are(
    share: float, calls: list[int], batches: list[int]
) -> None:
    account = DeviceShare(share, 100)
    called = streamed = 0
    waiting = iter(calls)
    for batch in batches:
        while account.allowance > 0 and (cost := next(waiting, None)) is not None:
            account.called(cost)
            called += cost
        account.streamed(batch)
        streamed += batch
    assert called <= streamed * share / (1 - share) + 100 + max(calls)


def test_with_a_backlog_of_both_the_device_is_divided_as_said() -> None:
    account = DeviceShare(0.2, 100)
    called = 0
    for _ in range(1000):
        while account.allowance > 0:
            account.called(10)
            called += 10
        account.streamed(100)
    assert called / (called + 100_000) == pytest.approx(0.2, abs=0.01)


def test_an_idle_stream_is_owed_nothing() -> None:
    account = DeviceShare(0.5, 100)
    account.called(10_000)
    assert account.allowance == 0
    account.stream_is_idle()
    assert account.allowance == 100
