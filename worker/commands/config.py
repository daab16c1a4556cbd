"""`xnli-worker config`: a file to begin with, the settings in force with their sources, a schema for editors."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from worker import settings as settings_module
from worker.commands.connection import say
from worker.commands.json_lines import is_wanted
from worker.errors import SettingsError
from worker.settings import Section, Settings
from worker.settings.in_force import Shown, in_force, plain, sections

_HEAD: Final = """\
# Settings of xnli-worker. A line that begins with #KEY shows the default: remove the # to change it.
# Every setting may come from the environment instead, as XNLI_<SECTION>__<KEY>, and secrets from files in the folder
# that XNLI_SECRETS_DIR names. Maps are merged key by key.
#   xnli-worker config show --config FILE    what is in force, and where it comes from
#   xnli-worker check --config FILE          whether it works, and how to mend what does not
"""
# What the file begins with where a setting has no default.
_BEGIN: Final = {"kafka.bootstrap_servers": "localhost:9092", "model.name": "demo"}
_VALUE_COLUMN: Final = 34


def init(file: Path, *, force: bool) -> None:
    """Write a commented settings file.

    Raises:
        SettingsError: it is there already, or cannot be written.
    """
    text = commented_settings()
    if file == Path("-"):
        sys.stdout.write(text)
        return
    try:
        with file.open("w" if force else "x", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError:
        raise SettingsError(f"{file} is there already; name another file, or overwrite it with --force") from None
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; name a file that may be written") from None
    say(f"wrote {file}; next: set kafka.bootstrap_servers and model.name in it, then xnli-worker check -c {file}")


def commented_settings() -> str:
    """Every setting with what it means and its default, as TOML."""
    lines = [_HEAD]
    for name, section in sections():
        lines += ["", f"[{name}]", *(f"# {line}" for line in _first_paragraph(section).splitlines())]
        for key, field in section.model_fields.items():
            lines.append(f"# {field.description}")
            begin = _BEGIN.get(f"{name}.{key}")
            default = plain(field.get_default(call_default_factory=True))
            lines.append(f"{key} = {toml(begin)}" if begin else f"#{key} = {'' if default is None else toml(default)}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def show(config: Path | None, *, as_json: bool) -> None:
    """Write every setting with its source, secrets masked.

    Raises:
        SettingsError: the settings are wrong.
    """
    sources = settings_module.given(config)
    loaded = settings_module.load(config)
    section = ""
    for shown in in_force(loaded, sources):
        if is_wanted(as_json):
            told = {"setting": _name(shown), "value": shown.value, "source": shown.source}
            sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")
            continue
        name, _, key = _name(shown).partition(".")
        if name != section:
            sys.stdout.write(("\n" if section else "") + f"[{name}]\n")
            section = name
        line = f"{key} = {'(not set)' if shown.value is None else toml(shown.value)}"
        sys.stdout.write(f"{line:<{_VALUE_COLUMN}}  # {shown.source}\n")


def _name(shown: Shown) -> str:
    return shown.setting if shown.key is None else f"{shown.setting}.{toml(shown.key)}"


def schema() -> None:
    """Write the JSON Schema of the settings' file."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Settings.model_json_schema()
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def _first_paragraph(section: type[Section]) -> str:
    return (section.__doc__ or "").replace("``", "").partition("\n\n")[0]


def toml(value: Any) -> str:
    """A value as TOML: JSON's form, save for tables."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(key)} = {toml(held)}" for key, held in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
