from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.rules.crash_count import DEATHS, STARTS, Mark, begin, counted, parse, render

marks = st.builds(Mark, starts=st.integers(0, 10), until=st.integers(-1, 2**62), deaths=st.integers(0, 5))


@given(marks)
def test_a_mark_survives_the_broker(mark: Mark) -> None:
    assert parse(render(mark)) == mark


@given(st.text())
def test_foreign_metadata_counts_as_none_or_as_a_mark_and_never_fails(metadata: str) -> None:
    assert isinstance(parse(metadata), Mark)


DAMAGED = [
    *(None, "", "{", "[]", "17", '"text"', "[" * 9999),
    *('{"starts": "x", "in_hand": true}', '{"starts": null, "in_hand": true}', '{"starts": -1, "in_hand": true}'),
    *(
        '{"starts": 1e400, "in_hand": true}',
        '{"starts": 2, "in_hand": 1}',
        '{"until": 1e400}',
        '{"until": 99999999999999999999}',
    ),
]


@pytest.mark.parametrize("metadata", DAMAGED)
def test_damaged_metadata_counts_as_none(metadata: str | None) -> None:
    assert parse(metadata) == Mark()


def test_starts_that_an_older_release_counted_say_nothing_of_records_in_hand() -> None:
    assert parse('{"starts": 3}') == Mark()
    assert parse('{"starts": 2, "in_hand": true, "added later": 1}') == Mark(starts=2)


def test_an_ordinary_commit_carries_no_metadata() -> None:
    assert render(Mark()) == ""


@given(offset=st.integers(0, 2**40), window=st.integers(1, 10_000))
def test_a_crash_loop_ends_in_quarantine(offset: int, window: int) -> None:
    """As a partition sees it: each start finds what the last one committed, until one record at a time is read."""
    metadata, starts = "", 0
    while not (mark := begin(parse(metadata), offset, window)).quarantined:
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


def test_a_mark_of_an_earlier_release_counts_as_the_first() -> None:
    assert parse('{"until": 7, "suspect": true}') == Mark(until=7, deaths=1)
