"""Which dead letters a replay sends, where to, and under which name it keeps its progress."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import asdict, dataclass
from typing import Final

from worker.errors import SettingsError
from worker.rules import names
from worker.rules.replay import Selection
from worker.settings import Settings

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class Campaign:
    """Which dead letters go where. ``group`` names its progress."""

    selection: Selection
    to: str | None
    max_replays: int
    name: str
    group: str


def campaign_of(
    settings: Settings, selection: Selection, to: str | None, max_replays: int, name: str | None
) -> Campaign:
    """The campaign a command line asks for.

    ``max_replays`` has no part in the default name: with a higher one the same dead letters would else be sent again.

    Raises:
        SettingsError: the name or the destination will not do.
    """
    topics = settings.topics
    if to == topics.dead_letter:
        raise SettingsError(f"--to {to!r} is the dead-letter topic itself; name another")
    if to is not None and (problem := names.topic_problem(to)):
        raise SettingsError(f"--to {to!r} {problem}")
    if name is None:
        meant = asdict(selection) | {"reasons": sorted(selection.reasons), "from": topics.dead_letter, "to": to}
        name = hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()[:12]
    elif _NAME.fullmatch(name) is None:
        raise SettingsError(f"--campaign {name!r}: use letters, digits, '.', '_' and '-', at most 100")
    return Campaign(selection, to, max_replays, name, f"{settings.kafka.group_id}.replay.{name}")


def is_meant(settings: Settings, asked: Campaign) -> bool:
    """Ask the person at the terminal whether all dead letters are meant.

    Raises:
        SettingsError: nobody is there to answer.
    """
    what = f"every dead letter of {settings.topics.dead_letter}"
    if sys.stdin is None or not sys.stdin.isatty():
        raise SettingsError(
            f"without a filter, replay sends {what}: give a filter (--reason, --since, ...), look with --dry-run, or "
            "say so with --yes"
        )
    sys.stderr.write(f"send {what} to {asked.to or 'where each came from'}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
