"""What is wrong with settings, a line for each finding: which setting, which value, and the mend."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from pydantic import ValidationError

from worker.settings.root import PREFIX, Settings
from worker.settings.section import Section


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
                lines.append(f"{'.'.join(map(str, found['loc'][:3]))}: must be a string, a number, true or false")
            case "extra_forbidden":
                lines.append(f"{where}: no such setting; {_known(found['loc'])}")
            case _:
                secret = where in {"schema_registry.password", "schema_registry.token"} or "properties" in where
                shown = "" if secret or isinstance(found["input"], dict) else f" = {found['input']!r}"
                lines.append(f"{where}{shown}: {found['msg'].removeprefix('Value error, ')}")
    return "\n".join(dict.fromkeys(lines))  # a union reports a value once for each of its types


def _missing(where: str, variable: str, config_file: Path | None) -> str:
    return f"{where}: is required; set it in {config_file or 'the --config file'} or as {variable}"


def _section(name: str) -> type[Section]:
    return cast("type[Section]", Settings.model_fields[name].annotation)


def _known(location: tuple[int | str, ...]) -> str:
    if len(location) == 1:
        return f"sections are {', '.join(Settings.model_fields)}"
    return f"[{location[0]}] knows {', '.join(_section(str(location[0])).model_fields)}"
