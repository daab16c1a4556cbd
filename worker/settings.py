"""Settings: a TOML file, overridden by ``XNLI_<SECTION>__<KEY>`` variables. The only reader of the environment.

Unknown keys are errors in both places, because a misspelt limit that is silently ignored is worse than no limit.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from worker.errors import SettingsError
from worker.messages import LongText, Pooling
from worker.rules import names
from worker.rules.hypothesis_template import TEMPLATE_RULE, is_template

PREFIX = "XNLI_"

Property = str | int | float | bool
SubjectStrategy = Literal["topic_name", "record_name", "topic_record_name"]
WireFraming = Literal["prefix", "guid"]


def _listed(value: object) -> object:
    """``a,b`` or a JSON array (from the environment), one string or a list (from TOML): always a list."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        return json.loads(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _parsed(value: object) -> object:
    """A JSON object (from the environment) or a table (from TOML)."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f'is no JSON ({error}): write {{"key": "value"}}') from None


def _sound(problem: Callable[[str], str | None]) -> AfterValidator:
    """A check by a rule that says what is wrong with a value."""

    def check(value: str) -> str:
        if found := problem(value):
            raise ValueError(found)
        return value

    return AfterValidator(check)


Topic = Annotated[str, _sound(names.topic_problem)]
Topics = Annotated[tuple[Topic, ...], NoDecode, BeforeValidator(_listed)]
Seconds = Annotated[tuple[float, ...], NoDecode, BeforeValidator(_listed)]
Properties = Annotated[dict[str, Property], NoDecode, BeforeValidator(_parsed)]


class Section(BaseModel):
    """A table of the TOML file. Immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class KafkaSettings(Section):
    """Where the brokers are and how this worker joins its group."""

    # Ours by invariant: another value would break what the worker promises, so it is refused rather than overwritten.
    RESERVED: ClassVar[Mapping[str, str]] = {
        "bootstrap.servers": "set kafka.bootstrap_servers",
        "group.id": "set kafka.group_id",
        "group.instance.id": "set kafka.group_instance_id",
        "group.protocol": "set kafka.group_protocol",
        "enable.auto.commit": "the worker commits what it has resolved, and nothing else may",
        "enable.auto.offset.store": "the worker commits what it has resolved, and nothing else may",
        "enable.idempotence": "always true: without it a retried produce may double or reorder results",
        "transactional.id": "derived from kafka.group_id and the instance; set kafka.group_instance_id to name it",
        "isolation.level": "always read_committed",
        "check.crcs": "always false: behind a wrong checksum librdkafka 2.16 passes over sound records",
        "acks": "always all: an unreplicated result is not an acknowledged one",
        "delivery.report.only.error": "always true: what fails is told of, and the rest is what has left the queue",
    }

    bootstrap_servers: str = Field(min_length=1)
    group_id: Annotated[str, _sound(names.id_problem)] = "xnli-worker"
    group_instance_id: Annotated[str, _sound(names.instance_problem)] | None = None
    group_protocol: Literal["classic", "consumer"] = "classic"
    # Out of repr: SASL passwords and TLS keys travel here.
    properties: Properties = Field(default_factory=dict, repr=False)
    consumer_properties: Properties = Field(default_factory=dict, repr=False)
    producer_properties: Properties = Field(default_factory=dict, repr=False)

    @field_validator("properties", "consumer_properties", "producer_properties")
    @classmethod
    def _not_reserved(cls, value: dict[str, Property]) -> dict[str, Property]:
        for key in value:
            if key in cls.RESERVED:
                raise ValueError(f"{key} cannot be set here: {cls.RESERVED[key]}")
        return value


class TopicSettings(Section):
    """Topic names. ``retry`` holds delays in seconds, a topic GROUP.retry.DELAYs each; empty means retry in place."""

    input: Topics = ("xnli.requests",)
    output: Topic = "xnli.results"
    dead_letter: Topic = "xnli.dead-letters"
    retry: Seconds = ()
    label_sets: Topic | None = None

    @field_validator("input")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one input topic")
        if len(set(value)) != len(value):
            raise ValueError("a topic stands there twice: name each once")
        return value

    @field_validator("retry")
    @classmethod
    def _delays(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if problem := names.delays_problem(value):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _no_loop(self) -> TopicSettings:
        for name, topic in (("output", self.output), ("dead_letter", self.dead_letter)):
            if topic in self.input:
                raise ValueError(
                    f"topics.{name} = {topic!r} is also an input topic: the worker would read what it writes"
                )
        if self.output == self.dead_letter:
            raise ValueError(f"topics.output and topics.dead_letter are both {self.output!r}: give each its own topic")
        if self.label_sets in {*self.input, self.output, self.dead_letter}:
            raise ValueError(f"topics.label_sets = {self.label_sets!r} has another use already: give it its own topic")
        return self


class SchemaRegistrySettings(Section):
    """A Confluent-compatible schema registry; without ``url`` messages carry Avro single-object encoding."""

    url: str | None = None
    username: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None
    subject_strategy: SubjectStrategy = "topic_name"
    framing: WireFraming = "prefix"
    auto_register: bool = False

    @model_validator(mode="after")
    def _one_auth(self) -> SchemaRegistrySettings:
        if self.token is not None and self.username is not None:
            raise ValueError("schema_registry.token and schema_registry.username exclude each other: keep one")
        if (self.username is None) != (self.password is None):
            raise ValueError("schema_registry.username and schema_registry.password come together: set both or neither")
        return self


class ModelSettings(Section):
    """The checkpoint, the device it runs on, and what a request means that does not say."""

    name: str = Field(min_length=1)
    revision: str | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    max_length: int | None = Field(default=None, ge=8)
    hypothesis_template: str = "This example is {}."
    labels: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_listed)] = None
    default_language: str | None = None
    long_text: LongText = LongText.TRUNCATE
    pooling: Pooling = Pooling.MEAN
    normalize: bool = True
    self_test: Literal["refuse", "warn", "off"] = "refuse"
    # A forward that takes longer means a device that hangs: the worker ends, for a supervisor to restart.
    timeout_s: float = Field(default=300.0, gt=0)

    @field_validator("hypothesis_template")
    @classmethod
    def _template(cls, value: str) -> str:
        if not is_template(value):
            raise ValueError(TEMPLATE_RULE)
        return value


class BatchSettings(Section):
    """What closes a batch, whichever comes first."""

    max_messages: int = Field(default=256, ge=1, le=100_000)
    max_tokens: int = Field(default=16_384, ge=16)
    max_wait_ms: int = Field(default=50, ge=0, le=60_000)


class DeliverySettings(Section):
    """The guarantee results are delivered with."""

    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"


class RetrySettings(Section):
    """How often and how patiently a record that failed is tried again. ``jitter`` 1 is full jitter, 0 none."""

    max_attempts: int = Field(default=5, ge=1, le=1000)
    initial_ms: int = Field(default=200, ge=1)
    max_ms: int = Field(default=30_000, ge=1)
    multiplier: float = Field(default=2.0, ge=1.0, le=100.0)
    jitter: float = Field(default=1.0, ge=0.0, le=1.0)


class DeadLetterSettings(Section):
    """Limits that halt the worker before it turns a broken deployment into a topic full of dead letters."""

    max_consecutive: int | None = Field(default=None, ge=1)
    max_ratio: float | None = Field(default=None, gt=0.0, le=1.0)


class LimitSettings(Section):
    """Bounds on one request. ``max_tokens`` is over all its rows. ``max_age_s`` None: requests do not expire."""

    max_text_chars: int = Field(default=100_000, ge=1)
    max_labels: int = Field(default=256, ge=1)
    max_label_chars: int = Field(default=500, ge=1)
    max_message_bytes: int = Field(default=1_048_576, ge=64)
    max_tokens: int = Field(default=262_144, ge=16)
    max_age_s: float | None = Field(default=None, gt=0)


class CacheSettings(Section):
    """``max_pairs`` premise-hypothesis pairs whose logits are kept; 0 is off."""

    max_pairs: int = Field(default=0, ge=0)


class HttpSettings(Section):
    """Where /healthz, /readyz and /metrics are served. Port 0 picks a free one and logs it."""

    host: str = "127.0.0.1"
    port: int = Field(default=9400, ge=0, le=65_535)


class LogSettings(Section):
    """Log level and format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Settings(BaseSettings):
    """Everything an operator can set, checked."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__", env_nested_max_split=1
    )

    kafka: KafkaSettings
    topics: TopicSettings = Field(default_factory=TopicSettings)
    schema_registry: SchemaRegistrySettings = Field(default_factory=SchemaRegistrySettings)
    model: ModelSettings
    batch: BatchSettings = Field(default_factory=BatchSettings)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    retry: RetrySettings = Field(default_factory=RetrySettings)
    dead_letter: DeadLetterSettings = Field(default_factory=DeadLetterSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    http: HttpSettings = Field(default_factory=HttpSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @model_validator(mode="after")
    def _derived_names(self) -> Settings:
        """Names that take more than one section to make."""
        topics, group = self.topics, self.kafka.group_id
        given = [*topics.input, topics.output, topics.dead_letter, *([topics.label_sets] if topics.label_sets else [])]
        if problem := names.retry_topics_problem(group, topics.retry, given) or names.collision_problem(given):
            raise ValueError(problem)
        return self


# Variables that steer the tests, not the worker: they share the prefix and are no settings.
_TESTS = f"{PREFIX}TEST_"

Tables = Mapping[str, Mapping[str, Any]]


class _Environment(EnvSettingsSource):
    """Our variables of a given environment; one that names no section is an error, not somebody else's variable."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._ours = {n.lower(): v for n, v in environ.items() if n.startswith(PREFIX) and not n.startswith(_TESTS)}
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
        raise SettingsError(_explain(error, config_file)) from None


def _read_toml(config_file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{config_file}: no such file; name an existing TOML file with --config") from None
    except OSError as error:
        raise SettingsError(f"{config_file}: cannot be read ({error.strerror}); check its permissions") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config_file}: is no TOML: {error}") from None


def _explain(error: ValidationError, config_file: Path | None) -> str:
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
