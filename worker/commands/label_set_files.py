"""Label sets as people keep them: TOML or JSON files, one set or several in each."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from worker.errors import SettingsError
from worker.label_sets import record
from worker.label_sets.record import LabelSetRecord, RefusedError

_SEVERAL: Final = "sets"


@dataclass(frozen=True, slots=True)
class GivenSet:
    """A set that stands in a file. ``value`` is what goes into the topic."""

    name: str
    record: LabelSetRecord
    value: bytes


def read(files: list[Path], name: str | None, *, otherwise: str | None = None) -> list[GivenSet]:
    """The sets of files, checked. A file is a set, or has several by their names under ``sets``.

    Args:
        files: TOML, by their suffix, or JSON.
        name: Of the only set, where the file does not say.
        otherwise: Of a set that has no other name.

    Raises:
        SettingsError: a file cannot be read, or holds no set; it says where and why.
    """
    found: dict[str, GivenSet] = {}
    for file in files:
        for given in _sets_of(file, name, otherwise):
            if given.name in found:
                raise SettingsError(f"{file}: the set {given.name!r} is given twice; give it once")
            found[given.name] = given
    if name is not None and set(found) != {name}:
        raise SettingsError(f"--name {name!r} is for one set: the files hold {', '.join(map(repr, found)) or 'none'}")
    return list(found.values())


def encoded(value: Any) -> bytes:
    """A value as it is written to the topic."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _sets_of(file: Path, name: str | None, otherwise: str | None) -> list[GivenSet]:
    parsed = _parsed(file)
    if isinstance(parsed, Mapping) and _SEVERAL in parsed:
        several = parsed[_SEVERAL]
        if len(parsed) > 1 or not isinstance(several, Mapping):
            raise SettingsError(f"{file}: {_SEVERAL} holds sets by their names, and nothing stands beside it")
        return [_given(file, key, value) for key, value in several.items()]
    own = parsed.get("name", otherwise) if isinstance(parsed, Mapping) else otherwise
    if name is None and not isinstance(own, str):
        raise SettingsError(f"{file}: the set has no name; give --name NAME, or write name = in the file")
    return [_given(file, name if name is not None else str(own), parsed)]


def _given(file: Path, name: str, value: Any) -> GivenSet:
    try:
        # Once more through JSON, for what TOML has and JSON has not (dates) is no part of a set.
        text = encoded(value)
        return GivenSet(name, record.read(name, text), text)
    except TypeError as error:
        raise SettingsError(f"{file}: {name}: {error}; write it as text, in quotes") from None
    except (RefusedError, ValueError) as error:
        raise SettingsError(f"{file}: {name}: {error}") from None


def _parsed(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: cannot be read ({error}); name a TOML or JSON file in UTF-8") from None
    try:
        return tomllib.loads(text) if file.suffix == ".toml" else record.parsed(text)
    except (ValueError, RecursionError) as error:
        kind = "TOML" if file.suffix == ".toml" else "JSON (files in TOML are called .toml)"
        raise SettingsError(f"{file}: is no {kind}: {str(error)[:200]}") from None
