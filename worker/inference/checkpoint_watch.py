"""Whether the checkpoint in a directory has been exchanged for another."""

from __future__ import annotations

from typing import Final

from worker.errors import CheckpointError
from worker.inference import checkpoint_files, source
from worker.inference.checkpoint_files import Fingerprint

POLL_S: Final = 2.0
# A copy that is under way writes all the time: what has not changed for so long is whole.
QUIET_S: Final = 5.0


class CheckpointWatch:
    """Looks at a checkpoint's files again and again. What is there at first is what is loaded.

    Contents are not read: a file that was written or replaced has another inode, size or time. The directory's name may
    be a symbolic link.

    Args:
        name: The directory, or a name that stands for one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._told = self._latest = self._fingerprint()
        self._since_s = 0.0

    def look(self, now_s: float) -> bool:
        """True once for each change, when it has been quiet for `QUIET_S`. ``now_s`` is monotonic."""
        found = self._fingerprint()
        if found != self._latest:
            self._latest, self._since_s = found, now_s
        if found is None or found == self._told or now_s - self._since_s < QUIET_S:
            return False
        self._told = found
        return True

    def _fingerprint(self) -> Fingerprint | None:
        """None while nothing is there: a link is being replaced, or a disk is away."""
        try:
            directory = source.local(self._name)
            return None if directory is None else checkpoint_files.fingerprint(directory)
        except (OSError, CheckpointError):
            return None
