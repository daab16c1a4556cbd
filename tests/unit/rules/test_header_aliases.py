from __future__ import annotations

from typing import get_args

import pytest

from worker.errors import Reason
from worker.messages import Fault, FaultKind, Headers, Partition, Position, Record
from worker.rules import dead_letter, replay
from worker.rules.dead_letter import PREFIX, DeadLetterSource
from worker.rules.header_aliases import PREFIXES, Family

FAMILIES: tuple[Family, ...] = get_args(Family)
FAULT = Fault(FaultKind.MESSAGE, Reason.SCHEMA, "decode", "Rejection", "wörter fehlen", "Traceback ...")
# As org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter (4.3) writes them, in its order.
CONNECT: Headers = (
    ("__connect.errors.topic", b"requests"),
    ("__connect.errors.partition", b"2"),
    ("__connect.errors.offset", b"17"),
    ("__connect.errors.connector.name", b"group"),
    ("__connect.errors.task.id", b"0"),
    ("__connect.errors.stage", b"VALUE_CONVERTER"),
    ("__connect.errors.class.name", b"xnli-worker"),
    ("__connect.errors.exception.class.name", b"Rejection"),
    ("__connect.errors.exception.message", "wörter fehlen".encode()),
    ("__connect.errors.exception.stacktrace", b"Traceback ..."),
)
# As org.apache.kafka.streams.errors.ExceptionHandlerUtils (4.2) does.
STREAMS: Headers = (
    ("__streams.errors.exception", "Rejection: wörter fehlen".encode()),
    ("__streams.errors.message", "wörter fehlen".encode()),
    ("__streams.errors.stacktrace", b"Traceback ..."),
    ("__streams.errors.topic", b"requests"),
    ("__streams.errors.partition", b"2"),
    ("__streams.errors.offset", b"17"),
)
# As org.apache.kafka.server.share.dlq.ShareGroupDLQStateManager (4.4) does.
SHARE: Headers = (
    ("__dlq.errors.topic", b"requests"),
    ("__dlq.errors.partition", b"2"),
    ("__dlq.errors.offset", b"17"),
    ("__dlq.errors.group", b"group"),
    ("__dlq.errors.delivery.count", b"3"),
    ("__dlq.errors.message", "wörter fehlen".encode()),
)


def _letter(headers: Headers = (), families: tuple[Family, ...] = FAMILIES, offset: int = 17) -> Headers:
    record = Record(Position(Partition("requests", 2), offset, 1), b"key", b"value", headers, 5)
    return dead_letter.dead_letter(record, FAULT, 3, DeadLetterSource("dead", "group", "worker-0", families)).headers


def _of(prefix: str, headers: Headers) -> Headers:
    return tuple(header for header in headers if header[0].startswith(prefix))


@pytest.mark.parametrize(("family", "expected"), [("connect", CONNECT), ("streams", STREAMS), ("share", SHARE)])
def test_a_dead_letter_says_the_same_in_the_bytes_of_other_tools(family: Family, expected: Headers) -> None:
    letter = _letter(families=(family,))
    assert _of("__", letter) == expected
    assert dict(letter)[f"{PREFIX}aliases"] == family.encode()


def test_nothing_is_written_unless_it_is_asked_for() -> None:
    mine: Headers = (("__connect.errors.topic", b"of the request's own dead letter"),)
    letter = _letter(mine, families=())
    assert _of("__", letter) == mine
    assert f"{PREFIX}aliases" not in dict(letter)


def test_a_second_death_replaces_them_and_does_not_grow() -> None:
    first = _letter((("tenant", b"a"),))
    second = _letter(first, offset=99)
    assert sorted(second) == sorted(first)  # the origin is that of the first death in every family
    # A family that is no longer asked for goes with the death that wrote it.
    assert _of("__", _letter(first, families=("share",))) == SHARE


def test_a_replay_takes_out_what_the_death_wrote_and_nothing_else() -> None:
    brought: Headers = (("tenant", b"a"), ("__streams.errors.topic", b"upstream"))
    record = Record(Position(Partition("dead", 0), 1, 1), b"key", b"value", _letter(brought, ("connect",)), 5)
    replayed = replay.replayed(replay.DeadLetterRecord(record), to=None, inputs=["requests"], max_replays=3)
    assert not isinstance(replayed, replay.Refusal)
    assert tuple(h for h in replayed.headers if not h[0].startswith(PREFIX)) == brought


def test_the_mark_of_a_stranger_takes_out_known_families_only() -> None:
    headers: Headers = ((f"{PREFIX}aliases", b"connect,\xff,tenant"), ("tenant", b"a"), *CONNECT, *STREAMS)
    assert dead_letter.foreign(headers) == (("tenant", b"a"), *STREAMS)


def test_the_prefixes_are_told_apart() -> None:
    assert not any(a.startswith(b) for a in PREFIXES.values() for b in PREFIXES.values() if a != b)
