"""Names that Kafka knows us by: what it allows, and those that are derived from the settings. Pure.

Whatever is derived is checked where the settings are read, because Kafka refuses a name only when it is used. One
illegal topic name among legal ones fails the whole subscription, so none of the others would be read either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final

from worker.rules.blank import is_blank

# org.apache.kafka.common.internals.Topic: what a broker checks when a topic is created.
MAX_TOPIC_CHARS: Final = 249
_ILLEGAL_IN_TOPIC: Final = re.compile(r"[^a-zA-Z0-9._-]")
# The protocol counts a string's bytes in 16 bits. Room is left for what we put behind a name.
MAX_ID_BYTES: Final = 32_767 - 512
# librdkafka takes C strings, which a NUL ends. No other control character can be typed into Kafka's own tools.
_ILLEGAL_IN_ID: Final = re.compile(r"[\x00-\x1f\x7f]")
# A longer delay is a slip of the pen: no topic keeps its records for 31 years.
MAX_DELAY_S: Final = 1e9
# `xnli-worker check` opens a transactional id under this instance's name, which would fence a worker of that name.
CHECK_INSTANCE: Final = "xnli-check"


def topic_problem(name: str) -> str | None:
    """Why Kafka allows no topic of this name, and what it allows; None if it does."""
    if name.startswith("^"):
        return "is a regular expression to the Kafka client, and patterns are not supported: list the topics by name"
    if not name:
        return "is empty: a topic name has 1 to 249 characters of [a-zA-Z0-9._-]"
    if name in {".", ".."}:
        return "is no topic name: Kafka reserves '.' and '..'"
    if illegal := sorted(set(_ILLEGAL_IN_TOPIC.findall(name))):
        return f"is no topic name: it has {', '.join(map(repr, illegal))}, and Kafka allows [a-zA-Z0-9._-] only"
    if len(name) > MAX_TOPIC_CHARS:
        return f"is no topic name: it has {len(name)} characters, and Kafka allows {MAX_TOPIC_CHARS}"
    return None


def id_problem(name: str) -> str | None:
    """Why a name will not do for a group, an instance or a transaction, of which Kafka asks little; None if it will."""
    if is_blank(name):
        return "is blank: give it a name"
    if illegal := sorted(set(_ILLEGAL_IN_ID.findall(name))):
        return f"has {', '.join(map(repr, illegal))}: leave control characters out"
    if any(0xD800 <= ord(character) <= 0xDFFF for character in name):
        return "is no valid Unicode: Kafka takes UTF-8"
    if (size := len(name.encode())) > MAX_ID_BYTES:
        return f"has {size} bytes: use at most {MAX_ID_BYTES}"
    return None


def instance_problem(name: str) -> str | None:
    """Why a name will not do for an instance of the worker; None if it will."""
    if name == CHECK_INSTANCE:
        return "is what `xnli-worker check` goes by, which would fence this worker: use another name"
    return id_problem(name)


def collision_problem(topics: Iterable[str]) -> str | None:
    """Which different names Kafka takes for one in its metrics, so that it refuses to create the second; or None."""
    known: dict[str, str] = {}
    for name in topics:
        other = known.setdefault(name.replace(".", "_"), name)
        if other != name:
            return (
                f"topics: {other!r} and {name!r} differ in '.' and '_' only, and Kafka refuses to create both: rename "
                "one of them"
            )
    return None


def delay(delay_s: float) -> str:
    """A delay in seconds as names have it: a plain decimal, to six significant digits where it has a fraction."""
    short = f"{delay_s:g}"
    return short if "e" not in short else format(Decimal(repr(delay_s)).normalize(), "f")


def retry_topics(group: str, delays_s: Iterable[float]) -> tuple[tuple[float, str], ...]:
    """Each delay in seconds with the name of its topic: ``GROUP.retry.5s``. They belong to the group that waits."""
    return tuple((delay_s, f"{group}.retry.{delay(delay_s)}s") for delay_s in sorted(delays_s))


def delays_problem(delays_s: Sequence[float]) -> str | None:
    """Why these delays will not do for retry topics; None if they will."""
    named: dict[str, float] = {}
    for delay_s in delays_s:
        if not 0 < delay_s <= MAX_DELAY_S:  # NaN fails too
            return f"{delay_s} is no delay: write seconds above 0 and up to {MAX_DELAY_S:.0f}, as in 5, 60, 600"
        name = delay(delay_s)
        if name in named:
            if named[name] == delay_s:
                return f"the delay {name} stands there twice: each has a topic of its own"
            return (
                f"the delays {named[name]!r} and {delay_s!r} would share the topic GROUP.retry.{name}s: write delays "
                "that differ in their first six digits"
            )
        named[name] = delay_s
    return None


def retry_topics_problem(group: str, delays_s: Iterable[float], given: Sequence[str]) -> str | None:
    """Why a group's retry topics cannot be beside the topics that are given, and how to mend it; None if they can."""
    for _, topic in retry_topics(group, delays_s):
        if problem := topic_problem(topic):
            return (
                f"topics.retry: the retry topic {topic!r} {problem}. It is named after kafka.group_id = {group!r}: "
                "rename the group, or leave topics.retry out, and retries are made in place"
            )
        if topic in given:
            return (
                f"topics.retry: {topic!r} is a retry topic of kafka.group_id = {group!r} and has another use in "
                "[topics]: rename one of them"
            )
        if problem := collision_problem([*given, topic]):
            return problem
    return None


def transactional_id(group: str, instance: str) -> str:
    """Of group and instance: a restart under the same name fences its predecessor and ends what it left open."""
    return f"{group}-{instance}"


def client_id(group: str, client: str) -> str:
    """What the broker's logs and quotas call one of our clients. ``client`` says what for."""
    return f"{group}-{client}"
