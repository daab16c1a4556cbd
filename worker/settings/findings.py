"""What is wrong with settings, a line for each finding: which setting, which value, and the mend."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

from pydantic import ValidationError

from worker import redaction
from worker.rules import addresses
from worker.settings.root import PREFIX, Settings
from worker.settings.section import Section

_NOT_SHOWN: Final = " (not shown)"
_MAX_SHOWN_CHARS: Final = 200
# Settings where an address belongs, and somebody may have written a password into it.
_ADDRESSES: Final = frozenset({"bootstrap_servers", "url", "oauth_token_url"})


def explain(error: ValidationError, config_file: Path | None) -> str:
    """The findings, a line each. Secrets are named and not shown."""
    lines: list[str] = []
    for found in error.errors():
        where = ".".join(str(part) for part in found["loc"])
        variable = PREFIX + "__".join(str(part) for part in found["loc"][:2]).upper()
        match found["type"]:
            case _ if not found["loc"]:  # of several sections: the message names the setting
                lines.append(found["msg"].removeprefix("Value error, "))
            case "missing" if len(found["loc"]) == 1:
                needed = [key for key, field in _section(where).model_fields.items() if field.is_required()]
                lines.extend(_missing(f"{where}.{key}", f"{variable}__{key.upper()}", config_file) for key in needed)
            case "missing":
                lines.append(_missing(where, variable, config_file))
            case _ if where.startswith("kafka.") and len(found["loc"]) == 4:  # property, type tried
                name = ".".join(map(str, found["loc"][:3]))
                lines.append(f"{_named(name)}: must be a string, a number, true or false")
            case "extra_forbidden":
                lines.append(f"{_named(where)}: no such setting; {_known(found['loc'])}")
            case _:
                shown = _shown(where, found["input"])
                lines.append(f"{where}{shown}: {found['msg'].removeprefix('Value error, ')}")
    return "\n".join(dict.fromkeys(lines))  # a union reports a value once for each of its types


def _named(where: str) -> str:
    """A setting whose value is not shown anyhow. The mark keeps the redaction from taking our words for a secret."""
    return f"{where}{_NOT_SHOWN}" if redaction.is_sensitive(where) else where


def _shown(where: str, value: object) -> str:
    """The value as a finding shows it. What may be a secret is not shown, however it was written."""
    if "properties" in where or "." not in where or not isinstance(value, (str, int, float)):
        return _named(where).removeprefix(where)
    if redaction.is_sensitive(where):
        return _NOT_SHOWN
    if where.rpartition(".")[2] in _ADDRESSES and not addresses.may_be_shown(str(value)):
        return _NOT_SHOWN
    text = repr(value)
    return f" = {text if len(text) <= _MAX_SHOWN_CHARS else f'{text[:_MAX_SHOWN_CHARS]}...'}"


def _missing(where: str, variable: str, config_file: Path | None) -> str:
    return f"{where}: is required; set it in {config_file or 'the --config file'} or as {variable}"


def _section(name: str) -> type[Section]:
    return cast("type[Section]", Settings.model_fields[name].annotation)


def _known(location: tuple[int | str, ...]) -> str:
    if len(location) == 1:
        return f"sections are {', '.join(Settings.model_fields)}"
    return f"[{location[0]}] knows {', '.join(_section(str(location[0])).model_fields)}"
