"""A message of the client as a record of ours: the one place where that is done."""

from __future__ import annotations

from typing import Any, Final

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from worker.messages import Headers, Partition, Position, Record

NO_TIMESTAMP: Final = -1


def record_of(message: Message, partition: Partition, generation: int) -> Record:
    """The record that a message without an error holds. This runs for every record: it does nothing twice.

    Args:
        message: As it was polled.
        partition: Of the message. The caller keeps one for each partition instead of making one for each record.
        generation: Of the partition's assignment; 0 where it was assigned by hand.
    """
    kind, timestamp_ms = message.timestamp()
    offset: Any = message.offset()  # the client's types allow for None, which only errors have
    headers, unreadable = headers_of(message)
    return Record(
        position=Position(partition, offset, generation),
        key=message.key(),
        value=message.value(),
        headers=headers,
        timestamp_ms=NO_TIMESTAMP if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms,
        unreadable=unreadable,
    )


def headers_of(message: Message) -> tuple[Headers, str]:
    """A message's headers, in their order, or none and why they cannot be read. Ask once for each message.

    The client's types allow for text, which becomes UTF-8.
    """
    try:
        raw: Any = message.headers()
    except (SystemError, ValueError) as error:
        # Names are text to the client, and any bytes to Kafka. Whoever asks again gets a tuple with holes in it.
        return (), f"the name of a header is not UTF-8, so none of its headers can be read ({error.__cause__ or error})"
    if not raw:  # most records have none
        return (), ""
    return tuple([(name, value.encode() if isinstance(value, str) else value) for name, value in raw]), ""
