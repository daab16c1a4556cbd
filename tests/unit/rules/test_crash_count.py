from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.rules.crash_count import DEATHS, STARTS, Mark, begin, counted
from worker.rules.offset_metadata import mark_of, render

marks = st.builds(Mark, starts=st.integers(0, 10), until=st.integers(-1, 2**62), deaths=st.integers(0, 5))


@given(offset=st.integers(0, 2**40), window=st.integers(1, 10_000))
def test_a_crash_loop_ends_in_quarantine(offset: int, window: int) -> None:
    """As a partition sees it: each start finds what the last one committed, until one record at a time is read."""
    metadata, starts = "", 0
    while not (mark := begin(mark_of(metadata), offset, window)).quarantined:
        metadata = render(counted(mark))
        starts += 1
    assert starts == STARTS
    assert mark == Mark(until=offset + window)


@given(marks.filter(lambda mark: mark.quarantined), st.integers(0, 2**40))
def test_a_quarantine_goes_on_over_restarts(mark: Mark, offset: int) -> None:
    assert begin(mark, offset, 512) == mark


def test_a_record_is_condemned_after_two_deaths_alone_and_not_before() -> None:
    assert not Mark(until=9, deaths=DEATHS - 1).condemned
    assert Mark(until=9, deaths=DEATHS).condemned
    assert not Mark(starts=9, deaths=9).condemned
