"""Reports of librdkafka's in words: a broker that cannot be reached, a worker that was fenced. Pure."""

from __future__ import annotations

import re
from typing import Final

from worker.errors import FatalError, Fenced

# "ssl://kafka-1:9093/bootstrap: Connect to ipv4#10.0.0.7:9093 failed: Connection refused (after 0ms in state CONNECT)"
_REPORT: Final = re.compile(r"^(?:\w+://)?(?P<broker>[^/\s]+)/(?:bootstrap|\d+): (?P<what>.*)$", re.DOTALL)
_CONNECT: Final = re.compile(r"^Connect to \S+ failed: (?P<why>.*)$", re.DOTALL)
_RESOLVE: Final = re.compile(r"^Failed to resolve '(?P<broker>[^']+)': (?P<why>.*)$", re.DOTALL)
_TIMING: Final = re.compile(r"\s*\(after \d+ms in state \w+(?:, \d+ identical error\(s\) suppressed)?\)\s*$")


def in_words(report: str) -> str:
    """A report of librdkafka's as a person would say it: ``cannot reach kafka-1:9092: connection refused``.

    What is no report of a broker comes back as it is.
    """
    found = _REPORT.match(report)
    if found is None:
        return report
    broker, what = found["broker"], _TIMING.sub("", found["what"])
    if "Invalid response size" in what:
        return f"{broker} answers, and not as a Kafka broker: is the port right, and is security.protocol?"
    for known in (_CONNECT, _RESOLVE):
        if (cause := known.match(what)) is not None:
            why = cause["why"].strip()
            return f"cannot reach {broker}: {why[:1].lower()}{why[1:]}"
    return f"{broker}: {what}"


def fenced(name: str | None, error: FatalError) -> FatalError:
    """The error in words where another worker took our place, and how both can be; else as it is.

    Args:
        name: kafka.group_instance_id; None: nobody else has our name.
        error: What ended the worker. librdkafka may give the bare notice that it is fatal, which names the property.
    """
    if name is None or not (isinstance(error, Fenced) or "group.instance.id" in str(error)):
        return error
    return Fenced(
        f"another worker has the name {name!r} (kafka.group_instance_id): give each its own, such as "
        f'"worker-{{hostname}}", in which the name of the machine is filled in, or leave it out ({error})'
    )
