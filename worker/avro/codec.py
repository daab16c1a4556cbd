"""Values of records to data and back: the shipped schemas, and the registry where one is set.

Without a registry, values carry Avro's single-object encoding and only the shipped schemas are known. With one,
Confluent's framings are read too, and written: the schema id before the value, or the schema's GUID in a header.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import tenacity
from pydantic import SecretStr

from worker.avro.binary import decode
from worker.avro.framing import SCHEMA_ID_HEADER, Frame, Framing, frame
from worker.avro.registry import Registry
from worker.avro.registry_access import Access, OAuthClient
from worker.avro.schema_walk import Schema, schema
from worker.avro.writing import Writer
from worker.errors import Reason, RegistryAway, Rejection, SettingsError
from worker.messages import Headers
from worker.settings import SchemaRegistrySettings, SubjectStrategy, WireFraming

REQUEST: Final = "inference-request.avsc"
RESULT: Final = "inference-result.avsc"


def schema_folder() -> Path:
    """Where the shipped ``*.avsc`` lie: inside an installed package, or beside it in a source checkout."""
    package = Path(__file__).parents[1]
    installed = package / "schemas"
    return installed if installed.is_dir() else package.parent / "schemas"


def subject(strategy: SubjectStrategy, topic: str, record: str) -> str:
    """The registry's name for the values of ``topic``, by Confluent's three strategies."""
    return {"topic_name": f"{topic}-value", "record_name": record, "topic_record_name": f"{topic}-{record}"}[strategy]


@dataclass(frozen=True, slots=True)
class _SchemaName:
    """How a value names a schema of ours: bytes before the payload, or headers beside it."""

    prefix: bytes
    headers: Headers = ()


class Codecs:
    """Reads and writes values. Call `open` before encoding with a registry.

    Args:
        url: Address of a Confluent-compatible registry, or several with commas between; None for none.
        access: Credentials and certificates for it.
        subject_strategy: How the subject of our own schemas is named.
        framing: ``prefix`` writes ``00`` and the schema id before the value, ``guid`` a header ``__value_schema_id``.
        auto_register: Register our schemas where they are missing; else they must be there.
        timeout_s: For one call of the registry.
        sleep: Waits between attempts of `open`; may raise to end them, as a stop flag should.
        clock: Monotonic seconds.

    Raises:
        SettingsError: the address cannot be one, a certificate cannot be used, or a shipped schema is missing.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        access: Access | None = None,
        subject_strategy: SubjectStrategy = "topic_name",
        framing: WireFraming = "prefix",
        auto_register: bool = False,
        timeout_s: float = 2.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._strategy: SubjectStrategy = subject_strategy
        self._framing: WireFraming = framing
        self._auto_register = auto_register
        self._sleep = sleep
        self._texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(schema_folder().glob("*.avsc"))}
        if not {REQUEST, RESULT} <= self._texts.keys():
            raise SettingsError(f"{schema_folder()}: {REQUEST} or {RESULT} is missing; reinstall the worker")
        # Producers without a registry go on writing the schema that they were built with.
        former = [path.read_text(encoding="utf-8") for path in sorted((schema_folder() / "former").glob("*.avsc"))]
        self._shipped = {known.fingerprint: known for known in map(schema, [*former, *self._texts.values()])}
        self._readers = {name: schema(self._texts[name], reader=True) for name in (REQUEST, RESULT)}
        self._writers = {name: Writer(reader.parsed) for name, reader in self._readers.items()}
        self._registry: Registry | None = None
        self._names: dict[str, _SchemaName] = {}
        if url is not None:
            self._registry = Registry(url, access=access, timeout_s=timeout_s, clock=clock)
        else:
            for file, reader in self._readers.items():
                self._names[file] = _SchemaName(b"\xc3\x01" + bytes.fromhex(reader.fingerprint))

    def open(self, *, result_topic: str | None = None, request_topic: str | None = None, attempts: int = 5) -> None:
        """Learn how the registry names the schemas that are to be written. Without a registry there is nothing to do.

        Raises:
            RegistryAway: it did not answer in ``attempts`` attempts, about half a minute in all with five.
            SettingsError: it does not know the schema, does not let us in, or has no GUID where ``framing`` needs one.
        """
        if self._registry is None:
            return
        retrying = self._retrying(attempts)
        for file, topic in ((RESULT, result_topic), (REQUEST, request_topic)):
            if topic is not None:
                self._names[file] = retrying(self._registered_name, self._registry, file, topic)

    def _retrying(self, attempts: int) -> tenacity.Retrying:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RegistryAway),
            wait=tenacity.wait_random_exponential(multiplier=1.0, max=10.0),
            stop=tenacity.stop_after_attempt(attempts),
            sleep=self._sleep,
            reraise=True,
        )

    def _registered_name(self, registry: Registry, file: str, topic: str) -> _SchemaName:
        named = subject(self._strategy, topic, self._readers[file].name)
        found = registry.registered(named, file, self._texts[file], register=self._auto_register)
        if self._framing == "prefix":
            if found.schema_id is None or not 0 <= int(found.schema_id) < 1 << 32:
                raise SettingsError(
                    f"{registry.place(named)} answers without a schema id; is schema_registry.url right?"
                )
            return _SchemaName(b"\x00" + int(found.schema_id).to_bytes(4, "big"))
        if found.guid is None:
            raise SettingsError(
                f"{registry.place(named)} answers without a GUID, as older registries do; "
                "set schema_registry.framing = 'prefix'"
            )
        return _SchemaName(b"", ((SCHEMA_ID_HEADER, b"\x01" + UUID(found.guid).bytes),))

    def declare(self, file: str, topic: str, compatibility: str, *, attempts: int = 5) -> str:
        """Register a shipped schema for the values of a topic; returns the registry's name for them.

        Raises:
            SettingsError: no registry is set, or it refuses the schema, or does not let us in.
            RegistryAway: it did not answer as it should in ``attempts`` attempts.
        """
        if self._registry is None:
            raise SettingsError("schema_registry.url is not set, so there is no registry for schemas: set it")
        named = subject(self._strategy, topic, self._readers[file].name)
        self._retrying(attempts)(self._registry.declare, named, file, self._texts[file], compatibility)
        return named

    # Reading

    def read_request(self, value: bytes, headers: Headers, max_message_bytes: int | None = None) -> dict[str, Any]:
        """The datum of ``xnli.InferenceRequest`` that a record's value holds; `worker.avro.request.request` goes on.

        Raises:
            Rejection: the record is at fault.
            RegistryAway: its schema could not be asked for; the record is innocent.
        """
        return self._read(frame(value, headers, max_message_bytes), REQUEST)

    def read_result(self, value: bytes, headers: Headers) -> dict[str, Any]:
        """The datum of ``xnli.InferenceResult`` that a record's value holds. Raises as `read_request` does."""
        return self._read(frame(value, headers), RESULT)

    def _read(self, framed: Frame, reader: str) -> dict[str, Any]:
        return decode(framed.payload, self.writer_schema(framed), self._readers[reader])

    def writer_schema(self, framed: Frame) -> Schema:
        """The schema a frame names.

        Raises:
            Rejection: SCHEMA, when nobody knows it or it is none that Avro data can be read with.
            RegistryAway: the registry does not answer, answers with an error of its own, or does not let us in.
        """
        if framed.framing is not Framing.SINGLE_OBJECT:
            if self._registry is not None:
                return self._registry.schema(framed.framing, framed.key)
            raise Rejection(
                Reason.SCHEMA,
                "schema",
                f"the value names its schema by {framed.framing} {framed.key}, and no registry is set; "
                "set schema_registry.url, or write with single-object encoding",
            )
        known = self._shipped.get(framed.key)
        if known is None:
            shipped = ", ".join(f"{s.fingerprint} ({s.name})" for s in self._shipped.values())
            raise Rejection(
                Reason.SCHEMA,
                "schema",
                f"fingerprint {framed.key} is none of a shipped schema: {shipped}; "
                "write with one of those, or with a schema registry",
            )
        return known

    # Writing

    def encode_result(self, datum: Mapping[str, Any]) -> tuple[bytes, Headers]:
        """Value and additional headers of a result. Drop ``SCHEMA_ID_HEADER`` from headers copied of the request."""
        return self._encode(datum, RESULT)

    def encode_request(self, datum: Mapping[str, Any]) -> tuple[bytes, Headers]:
        """Value and additional headers of a request."""
        return self._encode(datum, REQUEST)

    def _encode(self, datum: Mapping[str, Any], file: str) -> tuple[bytes, Headers]:
        name = self._names[file]
        return name.prefix + self._writers[file].to_bytes(datum), name.headers


def _access(settings: SchemaRegistrySettings) -> Access:
    oauth = None
    if settings.oauth_token_url is not None:
        oauth = OAuthClient(
            settings.oauth_token_url,
            settings.oauth_client_id or "",
            _revealed(settings.oauth_client_secret) or "",
            settings.oauth_scope,
            settings.oauth_logical_cluster or "",
            settings.oauth_identity_pool,
        )
    return Access(
        settings.username,
        _revealed(settings.password),
        _revealed(settings.token),
        oauth,
        settings.ca,
        settings.certificate,
        settings.key,
        _revealed(settings.key_password),
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def open_codecs(settings: SchemaRegistrySettings, sleep: Callable[[float], None] = time.sleep) -> Codecs:
    """Codecs as the settings describe the registry."""
    return Codecs(
        settings.url,
        access=_access(settings),
        subject_strategy=settings.subject_strategy,
        framing=settings.framing,
        auto_register=settings.auto_register,
        sleep=sleep,
    )
