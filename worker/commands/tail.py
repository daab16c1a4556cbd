"""`xnli-worker tail`: results, or dead letters, as JSON lines, from all partitions and as they arrive.

It takes no part in the worker's group: partitions are assigned by hand and nothing is committed, so it may run
anywhere at any time. Partitions added to the topic later are not followed.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from worker.avro.registry import Codecs, open_codecs
from worker.commands import connection
from worker.commands.connection import Reports, say
from worker.errors import BrokerAway, RegistryAway, Rejection, TopicMissing
from worker.kafka import client_config
from worker.messages import Headers
from worker.settings import Settings

_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 1.0
# Enough of a value that cannot be decoded to see what it is.
_SHOWN_BYTES: Final = 1024


def tail(
    config: Path | None,
    *,
    dead_letters: bool,
    count: int | None,
    from_beginning: bool,
    stop_requested: Callable[[], bool],
) -> bool:
    """Write each record as one JSON object a line, until ``count`` are written or ``stop_requested``. Always True.

    Every object has ``topic``, ``partition``, ``offset``, ``timestamp`` (ms since 1970, or null), ``key`` and
    ``headers`` as text; then ``result``, or for dead letters ``request``: the decoded datum, or null for a record
    without a value. Where a value cannot be decoded there is ``error``, and ``value_base64`` of its first KiB.

    A broker, topic or registry that is away is waited for, and stderr says so.

    Raises:
        SettingsError: the settings are wrong.
        FatalError: the client cannot go on.
    """
    settings = connection.load_settings(config)
    topic = settings.topics.dead_letter if dead_letters else settings.topics.output
    codecs = open_codecs(settings.schema_registry)
    reports = Reports(say)
    consumer = connection.connect(Consumer, _properties(settings), reports)
    try:
        start = _start(consumer, settings, reports, topic, from_beginning, stop_requested)
        consumer.assign(start)
        where = "its beginning" if from_beginning else "its end"
        say(f"following {topic} from {where}, partitions: {len(start)}")
        written = 0
        while not stop_requested() and written != count:
            message = consumer.poll(0.2)
            reports.check()
            if message is None:
                continue
            error = message.error()
            if error is not None:
                reports(error)
                continue
            shown = _await_registry(message, codecs, stop_requested, dead_letters=dead_letters)
            if shown is not None:
                # In UTF-8, as JSON is, whatever the locale says.
                sys.stdout.buffer.write(json_line(shown))
                sys.stdout.buffer.flush()
                written += 1
    finally:
        consumer.close()
    return True


def _properties(settings: Settings) -> dict[str, Any]:
    """The worker's consumer, so that whatever lets it in lets us in; its group's name is demanded but never used."""
    config = client_config.consumer(settings.kafka)
    config.pop("group.instance.id", None)
    return {**config, "client.id": f"{settings.kafka.group_id}-tail"}


def _start(
    consumer: Consumer,
    settings: Settings,
    reports: Reports,
    topic: str,
    from_beginning: bool,
    stop_requested: Callable[[], bool],
) -> list[TopicPartition]:
    """Where to begin in each partition; nowhere if told to stop before the broker and the topic are there."""
    told = ""
    while not stop_requested():
        try:
            numbers = connection.partitions(consumer, settings.kafka, reports, topic, _TIMEOUT_S)
            if from_beginning:
                return [TopicPartition(topic, number, OFFSET_BEGINNING) for number in numbers]
            # Asked for now: OFFSET_END is looked up some time later, and what arrived in between would be skipped.
            ends = [consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=_TIMEOUT_S) for n in numbers]
            return [TopicPartition(topic, number, end) for number, (_, end) in zip(numbers, ends, strict=True)]
        except (BrokerAway, TopicMissing) as away:
            waiting_for = str(away)
        except KafkaException as error:  # a partition whose leader is away
            waiting_for = error.args[0].str()
        if waiting_for != told:
            say(f"{waiting_for}; waiting")
            told = waiting_for
        time.sleep(_RETRY_S)
    return []


def _await_registry(
    message: Message, codecs: Codecs, stop_requested: Callable[[], bool], *, dead_letters: bool
) -> dict[str, Any] | None:
    """The record as it is shown; None if told to stop before the registry could name its schema."""
    told = False
    while not stop_requested():
        try:
            return describe(message, codecs, dead_letters=dead_letters)
        except RegistryAway as away:
            if not told:
                say(f"{away}; waiting")
            told = True
        time.sleep(_RETRY_S)
    return None


def describe(message: Message, codecs: Codecs, *, dead_letters: bool) -> dict[str, Any]:
    """A record as one JSON object; see `tail`. Raises RegistryAway."""
    kind, timestamp_ms = message.timestamp()
    headers = cast("Headers", tuple(message.headers() or ()))  # the client's types allow for what it never returns
    shown: dict[str, Any] = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": timestamp_ms if kind else None,  # 0 is TIMESTAMP_NOT_AVAILABLE
        "key": text_of(message.key()),
        "headers": {name: text_of(value) for name, value in headers},
    }
    name, read = ("request", codecs.read_request) if dead_letters else ("result", codecs.read_result)
    value = message.value()
    try:
        shown[name] = None if value is None else read(value, headers)
    except Rejection as rejection:
        shown["error"] = str(rejection)
        shown["value_base64"] = base64.b64encode((value or b"")[:_SHOWN_BYTES]).decode()
    return shown


def text_of(value: str | bytes | None) -> str | None:
    """Bytes as text, those that are no UTF-8 escaped."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def json_line(shown: dict[str, Any]) -> bytes:
    """An object as a line of JSON."""
    try:
        text = json.dumps(shown, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a request whose threshold is no number, say; JSON has no word for that, so it becomes text
        text = json.dumps(json.loads(json.dumps(shown), parse_constant=str), ensure_ascii=False)
    return text.encode() + b"\n"
