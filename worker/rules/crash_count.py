"""Records that kill the process: how they are found without slowing anything else.

A record that ends the process (a segmentation fault, the kernel's out-of-memory killer, ``os._exit``) leaves no error
behind, only a worker that starts again at the same offset. The count of such starts travels in the metadata of the
committed offset, so it survives the process and follows the partition to another worker:

1. On assignment the count is raised and committed with the unchanged offset. Commits carry it on until progress has
   passed all that can have been in flight when a predecessor died, or the end of the partition at that time: answers to
   the records before the killer say nothing about it. Then they carry no metadata, and progress costs nothing. A
   partition handed over in good order gets its count back, and none if there was progress.
2. At `STARTS` starts without progress the partition is quarantined: read one record at a time, each computed with
   nothing beside it, and marked as *suspect* by a commit before anything of it is decoded.
3. A suspect found on assignment was in hand when the process died. It is dead-lettered unread.
4. While a start counts, a partition is read no further than a window beyond its committed offset. The quarantine ends
   when that window is behind, so the killer is in it. One killer costs at most `STARTS` + 2 restarts: the first death,
   one for each start counted, and the one that its mark betrays.
5. A mark that a process finds as it left it itself, when it lost the partition in an outage say, counts for nothing.

What kills a process from outside looks the same: three hard kills with hardly an answer between them slow a partition
down, and a fourth condemns the record in hand. It is a dead letter, whole, and can be replayed.

The metadata is nothing, ``{"starts": n}``, ``{"until": offset}`` or ``{"until": offset, "suspect": true}``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Final

# Crashes for other reasons (a node drained hard, a broken image) should not slow partitions down at once, and a crash
# loop should end before anybody is woken: three is the smallest number that tells a habit from an accident.
STARTS: Final = 3


@dataclass(frozen=True, slots=True)
class Mark:
    """The metadata of a committed offset. ``until`` is the offset at which the quarantine ends, -1 outside of one."""

    starts: int = 0
    until: int = -1
    suspect: bool = False

    @property
    def quarantined(self) -> bool:
        """True while records are read one at a time."""
        return self.until >= 0


def parse(metadata: str | None) -> Mark:
    """Read a mark. Metadata that is not ours, or damaged, counts as none."""
    try:
        found = json.loads(metadata or "{}")
        return Mark(int(found.get("starts", 0)), int(found.get("until", -1)), bool(found.get("suspect", False)))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Mark()


def render(mark: Mark) -> str:
    """The mark as metadata; empty for the ordinary state."""
    fields: dict[str, int | bool] = {}
    if mark.starts:
        fields["starts"] = mark.starts
    if mark.quarantined:
        fields["until"] = mark.until
    if mark.suspect:
        fields["suspect"] = True
    return json.dumps(fields) if fields else ""


def begin(mark: Mark, offset: int, window: int) -> Mark:
    """The mark to commit when a partition is assigned at ``offset``.

    ``window`` is how many records of one partition can have been in flight when the process died.
    """
    if mark.quarantined:
        return mark
    if mark.starts >= STARTS:
        return Mark(until=offset + window)
    return replace(mark, starts=mark.starts + 1)
