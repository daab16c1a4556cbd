"""`xnli-worker tail`: results, or dead letters, as JSON lines, from all partitions and as they arrive.

It takes no part in the worker's group: partitions are assigned by hand and nothing is committed, so it may run
anywhere at any time. Partitions added to the topic later are not followed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING

from worker.avro.codec import Codecs, open_codecs
from worker.commands import connection
from worker.commands.connection import Reports, Waiting, say
from worker.commands.json_lines import describe, json_line
from worker.errors import BrokerAway, RegistryAway, TopicMissing
from worker.kafka.reader import Reader
from worker.messages import Record
from worker.settings import Settings

_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 1.0


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
    ``headers`` as text (a list of texts where several bear one name); then ``result``, or for dead letters ``request``:
    the decoded datum, or null for a record without a value. Where a value cannot be decoded there is ``error``, and
    ``value_base64`` of its first KiB.

    A broker, topic or registry that is away is waited for, and stderr says so.

    Raises:
        SettingsError: the settings are wrong.
        FatalError: the client cannot go on.
    """
    settings = connection.load_settings(config)
    topic = settings.topics.dead_letter if dead_letters else settings.topics.output
    codecs = open_codecs(settings.schema_registry)
    reports = Reports(say)
    reader = connection.open_reader(settings.kafka, topic, reports, client="tail")
    try:
        start = _starts(reader, settings, reports, stop_requested, from_beginning=from_beginning)
        reader.assign(start)
        where = "its beginning" if from_beginning else "its end"
        say(f"following {topic} from {where}, partitions: {len(start)}")
        written = 0
        while not stop_requested() and written != count:
            record = reader.poll(0.2)
            if record is None:
                continue
            shown = _await_registry(record, codecs, stop_requested, dead_letters=dead_letters)
            if shown is not None:
                # In UTF-8, as JSON is, whatever the locale says.
                sys.stdout.buffer.write(json_line(shown))
                sys.stdout.buffer.flush()
                written += 1
    finally:
        reader.close()
    return True


def _starts(
    reader: Reader,
    settings: Settings,
    reports: Reports,
    stop_requested: Callable[[], bool],
    *,
    from_beginning: bool,
) -> dict[int, int]:
    """Where to begin in each partition; nowhere if told to stop before the broker and the topic are there."""
    wait = Waiting(say, _RETRY_S)
    while not stop_requested():
        try:
            numbers = connection.partitions(reader.client, settings.kafka, reports, reader.topic, _TIMEOUT_S)
            if from_beginning:
                return dict.fromkeys(numbers, OFFSET_BEGINNING)
            # Asked for now: OFFSET_END is looked up some time later, and what arrived in between would be skipped.
            return {number: extent.end for number, extent in reader.extents(numbers, _TIMEOUT_S).items()}
        except (BrokerAway, TopicMissing) as away:  # or a partition's leader alone
            wait(str(away))
    return {}


def _await_registry(
    record: Record, codecs: Codecs, stop_requested: Callable[[], bool], *, dead_letters: bool
) -> dict[str, Any] | None:
    """The record as it is shown; None if told to stop before the registry could name its schema."""
    wait = Waiting(say, _RETRY_S)
    while not stop_requested():
        try:
            return describe(record, codecs, dead_letters=dead_letters)
        except RegistryAway as away:
            wait(str(away))
    return None
