"""Labelled examples of a topic: requests whose attribute ``expected`` says what is right. No group is joined."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from worker.avro.codec import Codecs, open_codecs
from worker.avro.excerpt import clip
from worker.commands import connection
from worker.commands.connection import Reports, Waiting, say
from worker.errors import RegistryAway, Rejection, SettingsError
from worker.learn import examples
from worker.learn.examples import EXPECTED, MAX_EXAMPLES, Defaults, Example
from worker.messages import Record
from worker.screen import plural
from worker.settings import Settings

_TIMEOUT_S: Final = 10.0
_RETRY_S: Final = 1.0
_SHOWN: Final = 5


def read(settings: Settings, topic: str, defaults: Defaults, stop_requested: Callable[[], bool]) -> list[Example]:
    """The examples that a topic holds now, from its beginning to where it ends.

    Requests that do not say what is expected are left out, and so is what cannot be read; stderr says how many.

    Raises:
        SettingsError: the topic holds no examples.
        BrokerAway, TopicMissing: nothing can be read.
        FatalError: the client cannot go on.
    """
    reports = Reports(say)
    codecs = open_codecs(settings.schema_registry)
    reader = connection.open_reader(settings.kafka, topic, reports, client="evaluate")
    found: list[Example] = []
    silent = refused = 0
    try:
        numbers = connection.partitions(reader.client, settings.kafka, reports, topic, _TIMEOUT_S)
        extents = reader.extents(numbers, _TIMEOUT_S)
        for record in reader.read({n: extent.begin for n, extent in extents.items()}, extents, stop_requested):
            place = f"{topic}:{record.position.partition.number}:{record.position.offset}"
            try:
                fields = _fields(record, codecs, stop_requested)
                if fields is None or EXPECTED not in fields["attributes"]:
                    silent += 1
                    continue
                found.append(examples.example(fields, defaults, place=place, otherwise=place))
            except (Rejection, ValueError) as error:
                refused += 1
                if refused <= _SHOWN:
                    say(f"{place}: {clip(str(error))}")
            if len(found) > MAX_EXAMPLES:
                raise SettingsError(f"{topic}: holds more than {MAX_EXAMPLES:,} examples; take a sample of them")
    finally:
        reader.close()
    if silent or refused:
        say(f"left out: {plural(silent, 'record')} without the attribute {EXPECTED}, {refused:,} that are no examples")
    if not found:
        raise SettingsError(f"{topic}: holds no request with the attribute {EXPECTED}; write it there, or name another")
    return examples.completed(found, defaults)


def _fields(record: Record, codecs: Codecs, stop_requested: Callable[[], bool]) -> dict[str, Any] | None:
    """The request of a record; None for a tombstone. Raises Rejection."""
    wait = Waiting(say, _RETRY_S)
    while record.value is not None and not stop_requested():
        try:
            return codecs.read_request(record.value, record.headers)
        except RegistryAway as away:
            wait(str(away))
            time.sleep(0)
    return None
