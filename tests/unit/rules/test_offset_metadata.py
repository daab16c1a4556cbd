from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.rules.crash_count import Mark
from worker.rules.offset_metadata import TopicId, mark_of, render, topic_id_of

marks = st.builds(Mark, starts=st.integers(0, 10), until=st.integers(-1, 2**62), deaths=st.integers(0, 5))
OURS = TopicId("uxnLdE4fQNiZ6Gp1b0YQ8A", "MkU3OEVBNTcwNTJENDM2Qk")


@given(marks, st.sampled_from([None, OURS]))
def test_what_is_written_survives_the_broker(mark: Mark, topic_id: TopicId | None) -> None:
    written = render(mark, topic_id)
    assert mark_of(written) == mark
    assert topic_id_of(written) == topic_id


@given(st.text())
def test_foreign_metadata_counts_as_none_or_as_a_mark_and_never_fails(metadata: str) -> None:
    assert isinstance(mark_of(metadata), Mark)
    assert topic_id_of(metadata) is None


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
    assert mark_of(metadata) == Mark()


def test_starts_that_an_older_release_counted_say_nothing_of_records_in_hand() -> None:
    assert mark_of('{"starts": 3}') == Mark()
    assert mark_of('{"starts": 2, "in_hand": true, "added later": 1}') == Mark(starts=2)


def test_a_commit_without_anything_to_say_has_no_metadata() -> None:
    assert render() == ""


@pytest.mark.parametrize(
    "ids", [{}, {"topic_id": "a"}, {"topic_id": 1, "cluster_id": 2}, {"topic_id": "", "cluster_id": ""}]
)
def test_half_an_id_is_none(ids: dict[str, object]) -> None:
    assert topic_id_of(json.dumps(ids)) is None


def test_offsets_that_were_copied_to_another_cluster_are_good_there() -> None:
    copied = TopicId("another", "another cluster")
    assert not OURS.is_another_than(copied)
    assert not OURS.is_another_than(None)
    assert not OURS.is_another_than(OURS)
    assert OURS.is_another_than(TopicId("another", OURS.cluster_id))


def test_what_older_releases_read_is_where_they_look_for_it() -> None:
    written = json.loads(render(Mark(starts=2), OURS))
    assert (int(written.get("starts", 0)), int(written.get("until", -1)), bool(written.get("suspect", False))) == (
        2,
        -1,
        False,
    )


def test_a_mark_of_an_earlier_release_counts_as_the_first() -> None:
    assert mark_of('{"until": 7, "suspect": true}') == Mark(until=7, deaths=1)
