"""Records that kill the process: how they are found without slowing anything else, and without blaming the innocent.

A record that ends the process (a segmentation fault, the kernel's out-of-memory killer, ``os._exit``) leaves no error
behind, only a worker that starts again at the same offset. What kills a process from outside (a lost node, an impatient
probe, ``kill -9``) looks the same, once. It does not look the same twice: it has no reason to come while the same
records are in hand, let alone while one record is alone on the device. So the evidence is collected in the metadata of
the committed offset, which survives the process and follows the partition to another worker:

1. When the first record of a partition is in hand, the count of starts is raised and committed with the unchanged
   offset. A worker that is idle counts nothing. Progress, a commit that moves the offset, sets the count back to one
   (this start), and to none once everything is answered that a predecessor can have had in hand. A partition handed
   over in good order gets its former count back.
2. So a count of `STARTS` at an assignment says that as many starts in a row died with records behind this very offset
   in hand, and answered none of them. The partition is quarantined: its records are read one at a time, each computed
   with nothing beside it, and *marked* by a commit before anything of it is decoded.
3. A mark found on assignment says that the process died while that record was alone in its hands. It is tried once
   more, alone again, and not before the process has lived for some seconds. A record under `DEATHS` marks is
   condemned: it becomes a dead letter unread.
4. While a start counts, a partition is read no further than a window beyond its committed offset. A start that follows
   a counted one answers its first window whole or not at all. So a killer that made a start die lies in that window,
   the next start makes no progress, and the quarantine looks for it there. It costs six restarts at most: its first
   death, one that may have answered records before it, `STARTS` without progress, `DEATHS` marked.
5. A mark that a process finds as it left it itself, when it lost the partition in an outage say, counts for nothing.

`worker.rules.offset_metadata` writes and reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

# One death with the same records in hand may be an accident. A second in a row that answered none of them is a reason
# to look closer, which costs nothing but speed: nobody is condemned by a count.
STARTS: Final = 2
DEATHS: Final = 2


@dataclass(frozen=True, slots=True)
class Mark:
    """The metadata of a committed offset.

    ``starts`` have had records behind it in hand and answered none. ``until`` is the offset at which the quarantine
    ends, -1 outside of one. ``deaths`` is how often the next record was marked, alone in hand, and not answered.
    """

    starts: int = 0
    until: int = -1
    deaths: int = 0

    @property
    def quarantined(self) -> bool:
        """True while records are read one at a time."""
        return self.until >= 0

    @property
    def condemned(self) -> bool:
        """True if the next record is given up unread."""
        return self.quarantined and self.deaths >= DEATHS


def begin(mark: Mark, offset: int, window: int) -> Mark:
    """The state in which a start begins with a partition whose offset is committed with ``mark``.

    ``window`` is how many records of one partition can have been in hand when the process died.
    """
    if mark.quarantined or mark.starts < STARTS:
        return mark
    return Mark(until=offset + window)


def counted(mark: Mark) -> Mark:
    """The mark of a start that has records in hand."""
    return replace(mark, starts=mark.starts + 1)
