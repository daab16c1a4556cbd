from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.rules.retry_headers import topics
from worker.rules.topic_names import MAX_CHARS, colliding, refusal

LEGAL = st.text("abcXYZ019._-", min_size=1, max_size=MAX_CHARS).filter(lambda name: name not in {".", ".."})


@given(LEGAL)
def test_what_kafka_takes_is_taken(name: str) -> None:
    assert refusal(name) is None


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("", "give it a name"),
        (".", "give it another"),
        ("..", "give it another"),
        ("a" * 250, "shorten it"),
        ("^rgx-.*", "name each topic"),
        ("team/a worker", "letters, digits"),
        ("thème", "letters, digits"),
        ("line\n", "letters, digits"),
    ],
)
def test_what_kafka_refuses_is_refused_with_its_mend(name: str, mend: str) -> None:
    assert mend in (refusal(name) or "")


@given(st.text(max_size=300))
def test_no_text_fails_the_rule(name: str) -> None:
    assert (refusal(name) is None) == (
        bool(re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", name)) and name not in {".", ".."} and "\n" not in name
    )


def test_names_that_kafka_takes_for_one() -> None:
    assert colliding(["a.b", "c", "a_b"]) == ("a.b", "a_b")
    assert colliding(["a.b", "a.b", "ab"]) is None


@given(st.lists(st.floats(1e-3, 1e9), unique=True, max_size=5).map(tuple))
def test_retry_topics_have_legal_names_and_each_its_own(delays_s: tuple[float, ...]) -> None:
    names = [name for _, name in topics("group", delays_s)]
    assert len(set(names)) == len(delays_s)
    assert all(refusal(name) is None for name in names)


def test_a_delay_of_a_month_is_written_out() -> None:
    assert topics("g", (2_592_000.0, 0.5, 5)) == (
        (0.5, "g.retry.0.5s"),
        (5, "g.retry.5s"),
        (2_592_000.0, "g.retry.2592000s"),
    )
