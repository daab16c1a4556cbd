"""What is committed beside an offset: which topic it belongs to, and what is known of starts and deaths there.

The metadata is nothing, or a JSON object. ``topic_id`` and ``cluster_id`` name the topic. ``{"starts": n, "in_hand":
true}``, ``{"until": offset}`` or ``{"until": offset, "suspect": n}`` are a `worker.rules.crash_count.Mark`, where n
counts the marks. Releases up to 0.1 wrote ``"suspect": true`` for the first mark, and read any number as that. They
also counted starts that had nothing in hand, and their orderly stop did not take them back: a count without ``in_hand``
is such a one, and says nothing. They pass over what they do not know, the ids for one, and commit without it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from worker.rules.crash_count import Mark

NO_MARK: Final = Mark()
_LARGEST: Final = (1 << 63) - 1
_LONGEST_ID: Final = 64


@dataclass(frozen=True, slots=True)
class TopicId:
    """Which topic an offset belongs to (KIP-516): one that is deleted and made again has the same name and another id.

    Ids of two clusters tell nothing of each other: offsets that were copied to another cluster are good there.
    """

    topic_id: str
    cluster_id: str

    def is_another_than(self, former: TopicId | None) -> bool:
        """True if the topic was made again since it had the former id; False where that cannot be told."""
        return former is not None and former.cluster_id == self.cluster_id and former.topic_id != self.topic_id


def mark_of(metadata: str | None) -> Mark:
    """The mark that metadata holds. What is not ours, or damaged, counts as none."""
    found = _read(metadata)
    starts = found.get("starts", 0) if found.get("in_hand") is True else 0
    until, deaths = found.get("until", -1), found.get("suspect", 0)
    is_sound = all(isinstance(number, int) and number <= _LARGEST for number in (starts, until, deaths))
    if not is_sound or starts < 0 or until < -1 or deaths < 0:
        return Mark()
    return Mark(int(starts), int(until), int(deaths))


def topic_id_of(metadata: str | None) -> TopicId | None:
    """The topic that metadata names, if it names one."""
    found = _read(metadata)
    topic_id, cluster_id = _id(found.get("topic_id")), _id(found.get("cluster_id"))
    return TopicId(topic_id, cluster_id) if topic_id and cluster_id else None


# Most commits say the same of a partition as the one before, and many partitions are of one topic.
@lru_cache(maxsize=256)
def render(mark: Mark = NO_MARK, topic_id: TopicId | None = None) -> str:
    """The metadata; empty where there is nothing to say."""
    fields: dict[str, int | str] = {}
    if topic_id is not None:
        fields |= {"topic_id": topic_id.topic_id, "cluster_id": topic_id.cluster_id}
    if mark.starts:
        fields |= {"starts": mark.starts, "in_hand": True}
    if mark.quarantined:
        fields["until"] = mark.until
    if mark.deaths:
        fields["suspect"] = mark.deaths
    return json.dumps(fields) if fields else ""


def _id(found: object) -> str:
    return found if isinstance(found, str) and len(found) <= _LONGEST_ID else ""


def _read(metadata: str | None) -> dict[str, Any]:
    try:
        found = json.loads(metadata or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
