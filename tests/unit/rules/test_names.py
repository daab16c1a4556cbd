from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.rules.names import MAX_DELAY_S, delay, delays_problem, id_problem, retry_topics, topic_problem


def test_the_names_that_retry_topics_have_always_had() -> None:
    assert retry_topics("g", (60, 0.5, 5)) == ((0.5, "g.retry.0.5s"), (5, "g.retry.5s"), (60, "g.retry.60s"))
    assert delay(60.5) == "60.5"
    assert delay(86400.0) == "86400"


def test_a_long_delay_and_a_short_one_are_plain_decimals() -> None:
    assert delay(30 * 86_400.0) == "2592000"
    assert delay(1e9) == "1000000000"
    assert delay(0.00001) == "0.00001"


@given(delays_s=st.lists(st.floats(0, MAX_DELAY_S, exclude_min=True), max_size=4))
def test_delays_without_a_problem_give_legal_names_that_differ(delays_s: list[float]) -> None:
    if delays_problem(delays_s) is not None:
        return
    names = [topic for _, topic in retry_topics("g", delays_s) if len(topic) <= 249]
    assert [topic_problem(name) for name in names] == [None] * len(names)
    assert len(set(names)) == len(names)


@given(name=st.text(max_size=5))
def test_a_topic_without_a_problem_is_one_of_kafka(name: str) -> None:
    allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
    is_legal = 0 < len(name) <= 249 and all(character in allowed for character in name) and name not in {".", ".."}
    assert (topic_problem(name) is None) == is_legal


def test_an_id_may_be_almost_anything() -> None:
    assert id_problem("Gruppe Ä/1") is None
    assert id_problem("\ud800") is not None
    assert id_problem("x" * 40_000) is not None
