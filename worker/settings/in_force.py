"""The settings in force, one by one, as they may be shown: secrets are masked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from worker import redaction
from worker.settings.reading import Source
from worker.settings.root import PREFIX, Settings
from worker.settings.section import Section


class Shown(NamedTuple):
    """A setting as it is in force, and where it comes from. ``key`` is that of a map's entry."""

    setting: str
    value: Any
    source: str
    key: str | None = None


def in_force(settings: Settings, sources: Sequence[Source] | None) -> Iterator[Shown]:
    """The settings in the order of their sections; maps key by key.

    Args:
        settings: Those in force.
        sources: Where they come from; None: all that is said of a setting's source is whether it is the default.
    """
    for name, section in sections():
        values: Section = getattr(settings, name)
        for key, field in section.model_fields.items():
            value = getattr(values, key)
            if isinstance(value, Mapping) and value:
                for inner, held in value.items():
                    # Masked by its own name: of a map of properties some are secrets.
                    masked = redaction.in_value(inner, held)
                    yield Shown(f"{name}.{key}", masked, _source(sources, name, key, field, value, inner), inner)
            else:
                yield Shown(f"{name}.{key}", _masked(key, value), _source(sources, name, key, field, value))


def sections() -> Iterator[tuple[str, type[Section]]]:
    """The sections and their names."""
    for name, field in Settings.model_fields.items():
        yield name, cast("type[Section]", field.annotation)


def plain(value: Any) -> Any:
    """A value as JSON and TOML have it; of a secret asterisks."""
    if isinstance(value, SecretStr):
        return str(value)
    return [plain(held) for held in value] if isinstance(value, tuple) else value


def _masked(key: str, value: Any) -> Any:
    shown = plain(value)
    return shown if shown is None or isinstance(value, bool) else redaction.in_value(key, shown)


def _source(
    sources: Sequence[Source] | None, section: str, key: str, field: FieldInfo, value: Any, inner: str | None = None
) -> str:
    """Who says a setting: the first that does."""
    if sources is None:
        is_default = not field.is_required() and value == field.get_default(call_default_factory=True)
        return "default" if is_default else "set"
    for source in sources:
        table = source.tables.get(section, {})
        if key not in table or (inner is not None and inner not in table[key]):
            continue
        if source.name == "environment":
            return f"{PREFIX}{section}__{key}".upper()
        return source.name
    return "default"
