"""What differs between two versions of a label set, in lines that a person reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from worker.label_sets.record import Label, LabelSetRecord, nodes

_WITHOUT = {"labels", "name"}


def differences(former: LabelSetRecord | None, new: LabelSetRecord) -> list[str]:
    """A line for each label that came (+) or went (-), and for what changed (~), the set's own settings first."""
    before = {} if former is None else _settings(former)
    after = _settings(new)
    lines = [f"~ {line}" for line in _changed(before, after)]
    old, now = ({} if former is None else _labels(former)), _labels(new)
    lines += [f"- {path}" for path in old if path not in now]
    for path, label in now.items():
        if path not in old:
            lines.append(f"+ {path}" + "".join(f", {line}" for line in _changed({}, label)))
        else:
            lines += [f"~ {path}: {line}" for line in _changed(old[path], label)]
    common = [path for path in now if path in old]
    if former is not None and common != [path for path in old if path in now]:
        lines.append("~ the order of labels, by which equal scores stand")
    return lines


def _settings(record: LabelSetRecord) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude=_WITHOUT, exclude_defaults=True)


def _labels(record: LabelSetRecord) -> dict[str, dict[str, Any]]:
    """What each label says besides its children, by its path. A bare array may hold one twice."""
    found: dict[str, dict[str, Any]] = {}
    paths: list[str] = []
    for entry, parent, *_ in nodes(record.labels):
        own = entry.label if isinstance(entry, Label) else entry
        path = own if parent < 0 else f"{paths[parent]} > {own}"
        paths.append(path)
        said = (
            entry.model_dump(mode="json", exclude={"label", "children"}, exclude_defaults=True)
            if isinstance(entry, Label)
            else {}
        )
        unique, count = path, 2
        while unique in found:
            unique, count = f"{path} ({count})", count + 1
        found[unique] = said
    return found


def _changed(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old != new:
            yield f"{name} {_shown(new)}" if old is None else f"{name} {_shown(old)} -> {_shown(new)}"


def _shown(value: object) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
