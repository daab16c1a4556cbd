"""The header names by which other tools know a dead letter, beside ours.

Three families are written in Kafka itself, and consoles read them:

- ``connect``: ``__connect.errors.*``, of Kafka Connect (KIP-298, ``DeadLetterQueueReporter``).
- ``streams``: ``__streams.errors.*``, of Kafka Streams (KIP-1034, ``ExceptionHandlerUtils``).
- ``share``: ``__dlq.errors.*``, of share groups (KIP-1191, ``ShareGroupDLQStateManager``).

Names and forms are theirs: text in UTF-8, numbers in decimal. What a family wants and a worker does not have is the
next best thing, and says so below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

from worker.messages import Headers

Family = Literal["connect", "streams", "share"]
PREFIXES: Final[Mapping[Family, str]] = {
    "connect": "__connect.errors.",
    "streams": "__streams.errors.",
    "share": "__dlq.errors.",
}

# The names of Connect's stages (enum Stage), because its readers parse them. What is not here is the sink's own work.
_STAGES: Final[Mapping[bytes, bytes]] = {
    b"read": b"KAFKA_CONSUME",
    b"frame": b"VALUE_CONVERTER",
    b"schema": b"VALUE_CONVERTER",
    b"decode": b"VALUE_CONVERTER",
    b"publish": b"KAFKA_PRODUCE",
}
_SINK: Final = b"TASK_PUT"

Said = Mapping[str, bytes]


def _connect(said: Said) -> dict[str, bytes]:
    return {
        "topic": said["topic"],
        "partition": said["partition"],
        "offset": said["offset"],
        "connector.name": said["group"],  # Connect names a sink's group after its connector
        "task.id": b"0",  # readers parse a number, and a worker is one task
        "stage": _STAGES.get(said["stage"], _SINK),
        "class.name": b"xnli-worker",
        "exception.class.name": said["error"],
        "exception.message": said["message"],
        "exception.stacktrace": said["stacktrace"],
    }


def _streams(said: Said) -> dict[str, bytes]:
    whole = said["error"] + b": " + said["message"] if said["message"] else said["error"]  # Throwable.toString()
    return {
        "exception": whole,
        "message": said["message"],
        "stacktrace": said["stacktrace"] or whole,
        "topic": said["topic"],
        "partition": said["partition"],
        "offset": said["offset"],
    }


def _share(said: Said) -> dict[str, bytes]:
    return {
        "topic": said["topic"],
        "partition": said["partition"],
        "offset": said["offset"],
        "group": said["group"],
        "delivery.count": said["attempts"],
        "message": said["message"],
    }


_MAKERS: Final[Mapping[Family, Callable[[Said], dict[str, bytes]]]] = {
    "connect": _connect,
    "streams": _streams,
    "share": _share,
}


def headers(families: Iterable[Family], said: Said) -> Headers:
    """What a dead letter says, ``said`` without our prefix, in the names of these families."""
    return tuple(
        (PREFIXES[family] + name, value) for family in families for name, value in _MAKERS[family](said).items()
    )


def prefixes(written: bytes) -> tuple[str, ...]:
    """The prefixes of the families that a dead letter says it was written with, as ``a,b``. Others are passed over."""
    named = set(written.decode("utf-8", "replace").split(","))
    return tuple(prefix for family, prefix in PREFIXES.items() if family in named)
