"""Reads settings from the file and from the environment; nothing else of ours reads the environment."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, PydanticBaseSettingsSource

from worker.errors import SettingsError
from worker.settings.findings import explain
from worker.settings.root import PREFIX, Settings

# Variables that steer the tests, not the worker: they share the prefix and are no settings.
_TESTS = f"{PREFIX}TEST_"

# What Kubernetes and Docker put into the environment for a Service or container that is called xnli or xnli-..., where
# names end in no hyphen: XNLI_HTTP__PORT is a setting. A port's value is an address, so XNLI_HTTP_PORT=9400 is none.
_SERVICE_LINK = re.compile(
    r"XNLI(_+[A-Z0-9]+)*_"
    r"(SERVICE_HOST=|SERVICE_PORT(_+[A-Z0-9]+)*=\d|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=)"
)

Tables = Mapping[str, Mapping[str, Any]]


class _Environment(EnvSettingsSource):
    """Our variables of a given environment; one that names no section is an error, not somebody else's variable."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._ours = {n.lower(): v for n, v in environ.items() if _is_ours(n, v)}
        super().__init__(settings_cls)
        for name in sorted(self._ours):
            section, separator, _ = name.removeprefix(PREFIX.lower()).partition("__")
            if not separator or section not in settings_cls.model_fields:
                raise SettingsError(
                    f"{name.upper()}: no such setting; variables are {PREFIX}<SECTION>__<KEY> "
                    f"with a section of {', '.join(settings_cls.model_fields)}"
                )

    def _load_env_vars(self) -> Mapping[str, str]:
        return self._ours


def _is_ours(name: str, value: str) -> bool:
    if not name.startswith(PREFIX) or name.startswith(_TESTS):
        return False
    section, separator, _ = name.removeprefix(PREFIX).lower().partition("__")
    return bool(separator and section in Settings.model_fields) or not _SERVICE_LINK.match(f"{name}={value}")


def load(
    config_file: Path | None = None, environ: Mapping[str, str] | None = None, defaults: Tables | None = None
) -> Settings:
    """Read settings: the environment over the file over ``defaults`` (what a command presets, as the demo does).

    Raises:
        SettingsError: the file is missing or no TOML, a key is unknown, or a value is refused. One line per finding.
    """
    variables = os.environ if environ is None else environ
    tables = _read_toml(config_file) if config_file is not None else {}

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                _Environment(settings_cls, variables),
                InitSettingsSource(settings_cls, tables),
                InitSettingsSource(settings_cls, dict(defaults or {})),
            )

    try:
        return Loaded()
    except ValidationError as error:
        raise SettingsError(explain(error, config_file)) from None


def _read_toml(config_file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{config_file}: no such file; name an existing TOML file with --config") from None
    except OSError as error:
        raise SettingsError(f"{config_file}: cannot be read ({error.strerror}); check its permissions") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config_file}: is no TOML: {error}") from None
