"""Reads settings from the file and from the environment; nothing else of ours reads the environment."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_origin
from urllib.parse import quote, unquote

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, PydanticBaseSettingsSource

from worker import redaction
from worker.errors import SettingsError
from worker.settings import secret_files
from worker.settings.findings import explain
from worker.settings.root import PREFIX, Settings
from worker.settings.schema_registry import SchemaRegistrySettings
from worker.settings.section import Section, parsed

# Variables that steer the tests, not the worker: they share the prefix and are no settings.
_TESTS = f"{PREFIX}TEST_"

# What Kubernetes and Docker put into the environment for a Service or container that is called xnli or xnli-..., where
# names end in no hyphen: XNLI_HTTP__PORT is a setting. A port's value is an address, so XNLI_HTTP_PORT=9400 is none.
_SERVICE_LINK = re.compile(
    r"XNLI(_+[A-Z0-9]+)*_"
    r"(SERVICE_HOST=|SERVICE_PORT(_+[A-Z0-9]+)*=\d|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=)"
)

# OpenTelemetry's own: where traces go to, in the order in which they say so, and the headers that hold its credentials.
_TRACES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_TRACE_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_TRACE_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")

Tables = Mapping[str, Mapping[str, Any]]


def maps() -> dict[str, set[str]]:
    """The settings that are maps, by section: what several places say of them is merged, key by key."""
    return {
        name: {key for key, field in _section(section).model_fields.items() if get_origin(field.annotation) is dict}
        for name, section in Settings.model_fields.items()
    }


def _section(field: FieldInfo) -> type[Section]:
    return cast("type[Section]", field.annotation)


def _parsed(tables: Tables) -> dict[str, dict[str, Any]]:
    """The tables with maps that were written as JSON as maps. What is no JSON stays, for validation to refuse."""
    found = {section: dict(table) if isinstance(table, Mapping) else table for section, table in tables.items()}
    for section, keys in maps().items():
        for key in keys & set(found.get(section, ())):
            with suppress(ValueError):
                found[section][key] = parsed(found[section][key])
    return found


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
    if not name.startswith(PREFIX) or name.startswith(_TESTS) or name == secret_files.DIRECTORY:
        return False
    section, separator, _ = name.removeprefix(PREFIX).lower().partition("__")
    return bool(separator and section in Settings.model_fields) or not _SERVICE_LINK.match(f"{name}={value}")


@dataclass(frozen=True, slots=True)
class Source:
    """A place that settings come from. ``name`` is for people."""

    name: str
    tables: dict[str, dict[str, Any]]


def given(
    config_file: Path | None, environ: Mapping[str, str] | None = None, defaults: Tables | None = None
) -> tuple[Source, ...]:
    """What each place says, the strongest first.

    Raises:
        SettingsError: the file, a secret or a variable cannot be one of ours.
    """
    variables = os.environ if environ is None else environ
    folder = variables.get(secret_files.DIRECTORY)
    secrets = secret_files.read(Path(folder), Settings.model_fields) if folder else {}
    return (
        Source("environment", _parsed(_Environment(Settings, variables)())),
        Source(folder or "", _parsed(secrets)),
        Source(str(config_file), _read_toml(config_file) if config_file is not None else {}),
        Source("preset", _parsed(defaults or {})),
    )


def load(
    config_file: Path | None = None, environ: Mapping[str, str] | None = None, defaults: Tables | None = None
) -> Settings:
    """Read settings: the environment over secret files over the TOML file over ``defaults`` (what a command presets).

    Maps merge key by key, so that a password in the environment leaves the file's other properties as they are.

    Raises:
        SettingsError: the file is missing or no TOML, a key is unknown, or a value is refused. One line per finding.
    """
    variables = os.environ if environ is None else environ
    secrets = list(_secrets(variables))
    redaction.know(secrets)  # what is wrong with the file is told before its own are known
    sources = given(config_file, variables, defaults)
    for source in sources:
        secrets += redaction.secrets_of(source.tables)
    redaction.know(secrets)

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(InitSettingsSource(settings_cls, dict(source.tables)) for source in sources)

    try:
        loaded = Loaded()
    except ValidationError as error:
        raise SettingsError(explain(error, config_file)) from None
    tokens = (token.get_secret_value() for token in loaded.http.tokens)
    redaction.know([*secrets, *_in_headers(loaded.schema_registry), *tokens])
    return loaded


@dataclass(frozen=True, slots=True)
class TraceExport:
    """How traces leave. ``limits_links``: OpenTelemetry's own variable says how many links a span may have."""

    protocol: Literal["grpc", "http/protobuf"]
    limits_links: bool


def traces(environ: Mapping[str, str] | None = None) -> TraceExport | None:
    """What OpenTelemetry's variables say of traces; None: there are to be none.

    They are on with an endpoint or with ``OTEL_TRACES_EXPORTER=otlp``, unless ``OTEL_SDK_DISABLED=true``.

    Raises:
        SettingsError: another exporter or protocol than those of OTLP.
    """
    variables = os.environ if environ is None else environ
    exporter = variables.get("OTEL_TRACES_EXPORTER", "").strip()
    is_on = exporter == "otlp" or (not exporter and any(variables.get(name) for name in _TRACES))
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return None
    if exporter not in {"", "otlp"}:
        raise SettingsError(f"OTEL_TRACES_EXPORTER = {exporter!r}: the worker knows otlp and none")
    if not is_on:
        return None
    name = next((name for name in _TRACE_PROTOCOLS if variables.get(name)), _TRACE_PROTOCOLS[0])
    match variables.get(name, "grpc").strip():
        case "grpc" | "http/protobuf" as protocol:
            return TraceExport(protocol, "OTEL_SPAN_LINK_COUNT_LIMIT" in variables)
        case other:
            raise SettingsError(f"{name} = {other!r}: the worker knows grpc and http/protobuf")


def _in_headers(registry: SchemaRegistrySettings) -> Iterator[str]:
    """What goes into an Authorization header as one, whose base64 is not made of that of its parts."""
    if registry.username is not None and registry.password is not None:
        yield f"{registry.username}:{registry.password.get_secret_value()}"
    if registry.oauth_client_id is not None and registry.oauth_client_secret is not None:
        client = (registry.oauth_client_id, registry.oauth_client_secret.get_secret_value())
        yield ":".join(quote(part, safe="") for part in client)


def _secrets(variables: Mapping[str, str]) -> Iterator[str]:
    """Those of the environment. HTTP clients repeat the hub's token when it cannot be a header's value."""
    for name, text in variables.items():
        if name == "HF_TOKEN" or _is_ours(name, text):
            yield from redaction.secrets_of(text, name=name)
            with suppress(ValueError, RecursionError):  # else it is no map of properties
                yield from redaction.secrets_of(json.loads(text), name=name)
    for name in _TRACE_HEADERS:
        for pair in variables.get(name, "").split(","):
            # Whatever a header is called, it is there to let somebody in.
            yield from redaction.secrets_of(unquote(pair.partition("=")[2]).strip(), name="token")


def _read_toml(config_file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{config_file}: no such file; name an existing TOML file with --config") from None
    except OSError as error:
        raise SettingsError(f"{config_file}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError) as error:  # of a number of 5,000 digits, and of arrays nested as deep
        raise SettingsError(f"{config_file}: is no TOML: {error}") from None
