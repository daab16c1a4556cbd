"""Settings that are files of a folder: what Kubernetes and Docker make of secrets."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from worker.errors import SettingsError

# The variable that names the folder.
DIRECTORY = "XNLI_SECRETS_DIR"


def read(directory: Path, sections: Collection[str]) -> dict[str, dict[str, Any]]:
    """The settings in a folder, as tables.

    A file is named as the variable is, with or without the prefix and in any case: ``schema_registry__password`` holds
    ``schema_registry.password``. A third part names one key of a map: ``kafka__properties__sasl.password``. White space
    at the end does not count, nor do names that begin with a dot, which Kubernetes keeps its own things under.

    Raises:
        SettingsError: there is no such folder, a file cannot be read, or its name is no setting.
    """
    tables: dict[str, dict[str, Any]] = {}
    try:
        files = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SettingsError(
            f"{DIRECTORY} = {str(directory)!r}: {error.strerror}; name a folder with a file for each secret"
        ) from None
    for file in files:
        section, _, rest = file.name.lower().removeprefix("xnli_").partition("__")
        key, _, inner = rest.partition("__")
        if section not in sections or not key:
            raise SettingsError(
                f"{file} is no setting; files are named <section>__<key>, with a section of {', '.join(sections)}"
            )
        try:
            held = file.read_text(encoding="utf-8").rstrip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file}: cannot be read ({error}); it must be a text file in UTF-8") from None
        table = tables.setdefault(section, {})
        if inner:
            table.setdefault(key, {})[inner] = held
        else:
            table[key] = held
    return tables
