"""Which names Kafka takes for topics, by its own rule (kafka: ``org.apache.kafka.common.internals.Topic``).

A name is a name. librdkafka takes one that begins with ``^`` for a regular expression, and subscribes to whatever
matches, our own output among it: such a name is refused like any other that Kafka would not take.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MAX_CHARS: Final = 249
_LEGAL: Final = re.compile(r"[a-zA-Z0-9._-]+")


def refusal(name: str) -> str | None:
    """What is wrong with a topic's name and how to mend it; None if Kafka takes it."""
    if name.startswith("^"):
        return "is a pattern; patterns are not supported: name each topic"
    if not name:
        return "is empty: give it a name"
    if name in {".", ".."}:
        return "is no name for a topic: give it another"
    if len(name) > MAX_CHARS:
        return f"has {len(name)} characters; Kafka takes at most {MAX_CHARS}: shorten it"
    if not _LEGAL.fullmatch(name):
        found = "".join(sorted({char for char in name if not _LEGAL.fullmatch(char)}))
        return f"has {found!r}, which Kafka does not take in a name: use letters, digits, '.', '_' and '-' alone"
    return None


def colliding(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that differ only in ``.`` and ``_``: Kafka refuses to create the second. None if there are none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.replace(".", "_"), name)
        if other != name:
            return other, name
    return None
