"""`xnli-worker label-sets put`, `delete` and `diff`: what changes the sets of the compacted topic, or would."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from worker import streams, terminal
from worker.avro.excerpt import excerpt
from worker.commands import connection, label_set_files, label_set_topic
from worker.commands.connection import say
from worker.commands.json_lines import is_wanted, json_line
from worker.commands.label_set_files import GivenSet
from worker.commands.label_set_topic import StoredSet
from worker.commands.label_set_window import Window
from worker.errors import NoSuchLabelSet, SettingsError
from worker.label_sets.differences import differences
from worker.learn import calibration_file
from worker.settings import Settings


def put(config: Path | None, files: list[Path], *, name: str | None, model: str | None, as_json: bool = False) -> None:
    """Write the sets of files to the topic, those that differ from what is there, and say what changed.

    Args:
        config: The settings' file.
        files: See `worker.commands.label_set_files.read`.
        name: Of the only set, where its file does not say.
        model: A model into whose window every hypothesis has to fit.
        as_json: JSON on a terminal too.

    Raises:
        SettingsError: the settings or a file are wrong, a set does not fit the model, names a calibration that these
            settings do not offer, or another content has its version already. Nothing is written.
        BrokerAway, TopicMissing: nothing is written.
        FatalError: a set was not written; those that were are told.
    """
    settings = connection.load_settings(config)
    given = label_set_files.read(files, name)
    _require_calibrations(settings, given)
    if model is not None:
        window = Window(settings, model)
        found = [f"{one.name}: {line}" for one in given for line in window.findings(one.record)]
        if found:
            raise SettingsError("\n".join(found))
    with label_set_topic.opened(settings) as topic:
        known = topic.read()
        changed: list[tuple[GivenSet, list[str]]] = []
        for one in given:
            lines = _lines(known.get(one.name), one)
            if lines:
                _require_version_of_its_own(known.get(one.name), one)
                changed.append((one, lines))
            else:
                with streams.reporting():
                    _tell(one.name, "unchanged", known[one.name].version, [], as_json=as_json)
        for one, lines in changed:
            places = topic.write({one.name: one.value}, known)
            partition, offset = places[one.name]
            state = "changed" if one.name in known else "created"
            version = one.record.version or f"{partition}/{offset}"
            with streams.reporting():  # those that follow are written all the same
                _tell(one.name, state, version, lines, as_json=as_json, partition=partition, offset=offset)


def diff(config: Path | None, files: list[Path], *, name: str | None, as_json: bool = False) -> bool:
    """Say how the sets of files differ from those of the topic. True if none does. Raises as `put` does."""
    settings = connection.load_settings(config)
    given = label_set_files.read(files, name)
    with label_set_topic.opened(settings) as topic:
        known = topic.read()
    is_same = True
    for one in given:
        stored = known.get(one.name)
        lines = _lines(stored, one)
        is_same = is_same and not lines
        state = "unchanged" if not lines else "new" if stored is None else "differs"
        version = one.record.version if stored is None else stored.version
        _tell(one.name, state, version, lines, as_json=as_json)
    return is_same


def delete(config: Path | None, names: list[str], *, asks: bool, as_json: bool = False) -> None:
    """Take sets away by tombstones.

    Raises:
        NoSuchLabelSet: one is not there. Nothing is written.
        SettingsError: nobody is there to say that it is meant.
    """
    settings = connection.load_settings(config)
    with label_set_topic.opened(settings) as topic:
        known = topic.read()
        for name in names:
            if name not in known:
                raise NoSuchLabelSet(f"{topic.name} has no label set {name!r}; xnli-worker label-sets list shows all")
        if asks and not _is_meant(names):
            say("nothing was deleted")
            return
        for name in dict.fromkeys(names):
            topic.write({name: None}, known)
            with streams.reporting():
                _tell(name, "deleted", known[name].version, [], as_json=as_json)


def _is_meant(names: list[str]) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise SettingsError("requests that name a deleted set become dead letters: say that it is meant with --yes")
    shown = ", ".join(terminal.harmless(name) for name in names)
    sys.stderr.write(f"delete {shown}? Requests that name a deleted set become dead letters. [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _require_calibrations(settings: Settings, given: list[GivenSet]) -> None:
    """Refuse a set whose calibration ``model.calibration`` does not hold, of any revision; or say that nobody knows."""
    naming = {one.name: one.record.calibration for one in given if one.record.calibration is not None}
    named = settings.model.calibration
    if not naming:
        return
    if named is None or not Path(named).exists():
        where = "is not set here" if named is None else f"= {named} is not on this machine"
        wanted = ", ".join(sorted(set(naming.values())))
        say(f"model.calibration {where}: whether the worker offers {wanted} is not checked")
        return
    offered = {file.name for file in calibration_file.read(Path(named))}
    for name, wanted in naming.items():
        if wanted not in offered:
            raise SettingsError(
                f"{name}: calibration = {excerpt(wanted)}, and model.calibration = {named} holds "
                f"{', '.join(sorted(offered))}: fit one of this name (xnli-worker calibrate --name), or name another"
            )


def _lines(stored: StoredSet | None, given: GivenSet) -> list[str]:
    """What differs. A set that is new, or in place of one that the worker refuses, has at least a label."""
    return differences(None if stored is None else stored.record, given.record)


def _require_version_of_its_own(stored: StoredSet | None, given: GivenSet) -> None:
    if stored is None or stored.record is None or given.record.version is None:
        return
    if stored.record.version == given.record.version:
        raise SettingsError(
            f"{given.name}: version {given.record.version!r} is in the topic with another content; give the new one a "
            "version of its own, or leave it out: results name it"
        )


def _tell(name: str, state: str, version: str | None, lines: list[str], *, as_json: bool, **place: Any) -> None:
    if is_wanted(as_json):
        shown = {"name": name, "status": state, "version": version, **place, "changes": lines}
        sys.stdout.buffer.write(json_line(shown))
    else:
        said = "" if version is None else f", version {version}"
        sys.stdout.write(terminal.harmless(f"{name}: {state}{said}") + "\n")
        for line in lines:
            sys.stdout.write(f"  {terminal.harmless(line)}\n")
    sys.stdout.flush()
