from __future__ import annotations

import pytest

from worker.errors import FatalError, Fenced
from worker.rules.trouble import fenced, in_words

REFUSED = "Connect to ipv4#127.0.0.1:1 failed: Connection refused"


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (
            f"127.0.0.1:1/bootstrap: {REFUSED} (after 0ms in state CONNECT)",
            "cannot reach 127.0.0.1:1: connection refused",
        ),
        (
            f"ssl://kafka-1:9093/3: {REFUSED} (after 2ms in state CONNECT, 7 identical error(s) suppressed)",
            "cannot reach kafka-1:9093: connection refused",
        ),
        (
            "no:1/bootstrap: Failed to resolve 'no:1': Name or service not known (after 3ms in state CONNECT)",
            "cannot reach no:1: name or service not known",
        ),
        (
            "web:80/bootstrap: Receive failed: Invalid response size 1213486160 (0..100000000): increase limits",
            "web:80 answers, and not as a Kafka broker: is the port right, and is security.protocol?",
        ),
        ("sasl_ssl://k:1/2: SASL authentication error: no", "k:1: SASL authentication error: no"),
        ("2/2 brokers are down", "2/2 brokers are down"),
    ],
)
def test_reports_in_words(report: str, words: str) -> None:
    assert in_words(report) == words


def test_a_fenced_worker_is_told_how_two_can_be() -> None:
    bare = FatalError("the consumer cannot go on: Static consumer fenced by other consumer with same group.instance.id")
    for error in (Fenced("FENCED_INSTANCE_ID"), bare):
        said = str(fenced("worker-0", error))
        assert "another worker has the name 'worker-0'" in said
        assert '"worker-{hostname}"' in said
        assert str(error) in said
    assert fenced(None, bare) is bare
    other = FatalError("the broker grants no transactions")
    assert fenced("worker-0", other) is other
