"""Which schema a record was written with, and how ours are named on the wire: shipped schemas and schema registries.

Without a registry, values carry Avro's single-object encoding and only the shipped schemas are known. With one,
Confluent's framings are read too, and written: the schema id before the value, or the schema's GUID in a header.

Reading a schema by id or GUID happens on the Kafka thread while records wait, so it is asked for once, with a short
timeout and no retry: `RegistryAway` goes up at once and the loop, which can wait while it polls, tries again. Only
`Codecs.open`, at the start, waits by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import tenacity

from worker.avro import request, result
from worker.avro.request import SCHEMA_ID_HEADER, Frame, Framing, Schema
from worker.errors import Reason, RegistryAway, Rejection, SettingsError
from worker.messages import Headers
from worker.settings import SchemaRegistrySettings

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema as RegistrySchema
    from confluent_kafka.schema_registry import SchemaRegistryClient

REQUEST: Final = "inference-request.avsc"
RESULT: Final = "inference-result.avsc"

SubjectStrategy = Literal["topic_name", "record_name", "topic_record_name"]
WireFraming = Literal["prefix", "guid"]

# Schemas by id or GUID kept; each is a few kilobytes, and an id's schema never changes.
_MAX_CACHED: Final = 512
# References one schema may pull in. Each is a request to the registry while records wait.
_MAX_REFERENCES: Final = 32
# How long "no such schema" is believed. A producer that writes to the wrong registry sends one unknown id a million
# times; a registry that follows another may learn of an id seconds after the producer.
_UNKNOWN_FOR_S: Final = 10.0

_T = TypeVar("_T")


def schema_folder() -> Path:
    """Where the shipped ``*.avsc`` lie: inside an installed package, or beside it in a source checkout."""
    package = Path(__file__).parents[1]
    installed = package / "schemas"
    return installed if installed.is_dir() else package.parent / "schemas"


def subject(strategy: SubjectStrategy, topic: str, record: str) -> str:
    """The registry's name for the values of ``topic``, by Confluent's three strategies."""
    return {"topic_name": f"{topic}-value", "record_name": record, "topic_record_name": f"{topic}-{record}"}[strategy]


@dataclass(frozen=True, slots=True)
class _Mark:
    """What names our schema on the wire: bytes before the payload, or headers beside it."""

    prefix: bytes
    headers: Headers = ()


class _UnknownError(Exception):
    """The registry knows no such schema, subject or version."""


class Codecs:
    """Reads and writes values. Call `open` before encoding with a registry.

    Args:
        url: Address of a Confluent-compatible registry, or several with commas between; None for none.
        username: For basic authentication, with ``password``.
        password: As above.
        token: Bearer token, instead of the two.
        subject_strategy: How the subject of our own schemas is named.
        framing: ``prefix`` writes ``00`` and the schema id before the value, ``guid`` a header ``__value_schema_id``.
        auto_register: Register our schemas where they are missing; else they must be there.
        timeout_s: For one call of the registry.
        sleep: Waits between attempts of `open`; may raise to end them, as a stop flag should.
        clock: Monotonic seconds.

    Raises:
        SettingsError: the address cannot be one.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        subject_strategy: SubjectStrategy = "topic_name",
        framing: WireFraming = "prefix",
        auto_register: bool = False,
        timeout_s: float = 2.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._strategy: SubjectStrategy = subject_strategy
        self._framing: WireFraming = framing
        self._auto_register = auto_register
        self._sleep = sleep
        self._clock = clock
        self._texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(schema_folder().glob("*.avsc"))}
        if not {REQUEST, RESULT} <= self._texts.keys():
            raise SettingsError(f"{schema_folder()}: {REQUEST} or {RESULT} is missing; reinstall the worker")
        self._shipped = {known.fingerprint: known for known in map(request.schema, self._texts.values())}
        self._readers = {name: request.schema(self._texts[name], reader=True) for name in (REQUEST, RESULT)}
        self._client = _connect(url, username, password, token, timeout_s) if url is not None else None
        self._fetched = lru_cache(maxsize=_MAX_CACHED)(self._fetch)
        self._unknown: dict[tuple[Framing, str], tuple[float, str]] = {}
        self._marks: dict[str, _Mark] = {}
        if url is None:
            for name, reader in self._readers.items():
                self._marks[name] = _Mark(b"\xc3\x01" + bytes.fromhex(reader.fingerprint))

    def open(self, *, result_topic: str | None = None, request_topic: str | None = None, attempts: int = 5) -> None:
        """Learn how the registry names the schemas that are to be written. Without a registry there is nothing to do.

        Raises:
            RegistryAway: it did not answer in ``attempts`` attempts, about half a minute in all with five.
            SettingsError: it does not know the schema, does not let us in, or has no GUID where ``framing`` needs one.
        """
        if self._client is None:
            return
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RegistryAway),
            wait=tenacity.wait_random_exponential(multiplier=1.0, max=10.0),
            stop=tenacity.stop_after_attempt(attempts),
            sleep=self._sleep,
            reraise=True,
        )
        for name, topic in ((RESULT, result_topic), (REQUEST, request_topic)):
            if topic is not None:
                self._marks[name] = retrying(self._look_up, name, topic)

    # Reading

    def read_request(self, value: bytes, headers: Headers, max_message_bytes: int | None = None) -> dict[str, Any]:
        """The datum of ``xnli.InferenceRequest`` that a record's value holds; `worker.avro.request.request` goes on.

        Raises:
            Rejection: the record is at fault.
            RegistryAway: its schema could not be asked for; the record is innocent.
        """
        return self._read(request.frame(value, headers, max_message_bytes), REQUEST)

    def read_result(self, value: bytes, headers: Headers) -> dict[str, Any]:
        """The datum of ``xnli.InferenceResult`` that a record's value holds. Raises as `read_request` does."""
        return self._read(request.frame(value, headers), RESULT)

    def _read(self, frame: Frame, reader: str) -> dict[str, Any]:
        return request.decode(frame.payload, self.writer_schema(frame), self._readers[reader])

    def writer_schema(self, frame: Frame) -> Schema:
        """The schema a frame names.

        Raises:
            Rejection: SCHEMA, when nobody knows it or it is none that Avro data can be read with.
            RegistryAway: the registry does not answer, answers with an error of its own, or does not let us in.
        """
        if frame.framing is Framing.SINGLE_OBJECT:
            known = self._shipped.get(frame.key)
            if known is None:
                shipped = ", ".join(f"{s.fingerprint} ({s.name})" for s in self._shipped.values())
                raise _unknown(
                    f"fingerprint {frame.key} is none of a shipped schema: {shipped}; "
                    "write with one of those, or with a schema registry"
                )
            return known
        if self._client is None:
            raise _unknown(
                f"the value names its schema by {frame.framing} {frame.key}, and no registry is set; "
                "set schema_registry.url, or write with single-object encoding"
            )
        key = (frame.framing, frame.key)
        believed_until, message = self._unknown.get(key, (0.0, ""))
        if message and self._clock() < believed_until:
            raise _unknown(message)
        try:
            return self._fetched(*key)
        except Rejection as rejection:
            if len(self._unknown) >= _MAX_CACHED:
                self._unknown.clear()
            self._unknown[key] = (self._clock() + _UNKNOWN_FOR_S, str(rejection))
            raise

    def _fetch(self, framing: Framing, key: str) -> Schema:
        client = self._known_client
        try:
            if framing is Framing.CONFLUENT_ID:
                found = self._ask(partial(client.get_schema, int(key)))
            else:
                found = self._ask(partial(client.get_schema_by_guid, key))
            references: dict[tuple[str, int], str] = {}
            self._collect(found, references)
        except _UnknownError as error:
            raise _unknown(
                f"the registry at {self._url} knows no {framing} {key} ({error}); "
                "write with a schema that is registered there"
            ) from None
        if (found.schema_type or "AVRO") != "AVRO":
            raise _unknown(f"{framing} {key} is a schema of type {found.schema_type}; only AVRO is read")
        try:
            return request.schema(found.schema_str or "", tuple(references.values()))
        except Rejection as rejection:
            raise _unknown(f"{framing} {key}: {rejection}") from rejection

    def _collect(self, found: RegistrySchema, into: dict[tuple[str, int], str]) -> None:
        """The texts of all schemas ``found`` refers to, each after those it refers to itself."""
        client = self._known_client
        for reference in found.references or ():
            name, version = str(reference.subject), int(reference.version or 0)
            if (name, version) in into:
                continue
            if len(into) >= _MAX_REFERENCES:
                raise _unknown(f"the writer's schema refers to more than {_MAX_REFERENCES} others; inline them")
            # A soft-deleted version is still what its data was written with.
            target = self._ask(partial(client.get_version, name, version, deleted=True)).schema
            self._collect(target, into)
            into[name, version] = target.schema_str or ""

    # Writing

    def encode_result(self, datum: Mapping[str, Any]) -> tuple[bytes, Headers]:
        """Value and additional headers of a result. Drop ``SCHEMA_ID_HEADER`` from headers copied of the request."""
        return self._encode(datum, RESULT)

    def encode_request(self, datum: Mapping[str, Any]) -> tuple[bytes, Headers]:
        """Value and additional headers of a request."""
        return self._encode(datum, REQUEST)

    def _encode(self, datum: Mapping[str, Any], name: str) -> tuple[bytes, Headers]:
        mark = self._marks[name]
        return mark.prefix + result.to_bytes(datum, self._readers[name]), mark.headers

    def _look_up(self, name: str, topic: str) -> _Mark:
        from confluent_kafka.schema_registry import Schema as RegistrySchema  # noqa: PLC0415 (see _connect)

        client = self._known_client
        named = subject(self._strategy, topic, self._readers[name].name)
        ours = RegistrySchema(self._texts[name], "AVRO")
        where = f"subject {named!r} in the registry at {self._url}"
        try:
            if self._auto_register:
                found = self._ask(partial(client.register_schema_full_response, named, ours), starting=True)
            else:
                found = self._ask(partial(client.lookup_schema, named, ours), starting=True)
        except _UnknownError as error:
            raise SettingsError(
                f"{where} has no version equal to schemas/{name} ({error}); "
                "register that file there, or set schema_registry.auto_register = true"
            ) from None
        if self._framing == "prefix":
            if found.schema_id is None:
                raise SettingsError(f"{where} answers without a schema id; is schema_registry.url right?")
            return _Mark(b"\x00" + int(found.schema_id).to_bytes(4, "big"))
        if found.guid is None:
            raise SettingsError(
                f"{where} answers without a GUID, as older registries do; set schema_registry.framing = 'prefix'"
            )
        return _Mark(b"", ((SCHEMA_ID_HEADER, b"\x01" + UUID(found.guid).bytes),))

    # The registry

    @property
    def _known_client(self) -> SchemaRegistryClient:
        if self._client is None:
            raise RuntimeError("no registry")
        return self._client

    def _ask(self, call: Callable[[], _T], *, starting: bool = False) -> _T:
        """One call, its failures sorted by whose they are. ``starting``: a refusal means the settings are wrong."""
        try:
            return call()
        except Exception as error:  # the client raises its HTTP library's errors, and those of the JSON it reads
            status = getattr(error, "http_status_code", None)
            said = f"{type(error).__name__}: {error}"
            # 404xx says that the thing is missing; a bare 404 comes from a wrong path or a proxy, and would condemn
            # every record there is.
            if status == 404 and getattr(error, "error_code", None) in range(40400, 40500):
                raise _UnknownError(said) from error
            if starting and status is not None and 400 <= status < 500 and status not in {404, 408, 429}:
                mend = "check schema_registry.username, password or token" if status in {401, 403} else "see its log"
                raise SettingsError(f"the registry at {self._url} refuses: {said}; {mend}") from error
            raise RegistryAway(f"the registry at {self._url} does not answer as it should: {said}") from error


def open_codecs(settings: SchemaRegistrySettings, sleep: Callable[[float], None] = time.sleep) -> Codecs:
    """Codecs as the settings describe the registry."""
    return Codecs(
        settings.url,
        username=settings.username,
        password=settings.password.get_secret_value() if settings.password else None,
        token=settings.token.get_secret_value() if settings.token else None,
        subject_strategy=settings.subject_strategy,
        framing=settings.framing,
        auto_register=settings.auto_register,
        sleep=sleep,
    )


def _connect(
    url: str, username: str | None, password: str | None, token: str | None, timeout_s: float
) -> SchemaRegistryClient:
    # Takes 0.6 s to import, which runs without a registry need not pay.
    from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: PLC0415

    for address in url.split(","):
        parts = urlsplit(address.strip())
        if parts.username or parts.password:
            raise SettingsError(
                "schema_registry.url holds credentials, which would end up in logs; "
                "set schema_registry.username and schema_registry.password"
            )
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SettingsError(
                f"schema_registry.url = {address.strip()!r}: write http://host:port or https://host:port"
            )
    # Retries would block the Kafka thread; who calls us knows how to wait.
    conf: dict[str, Any] = {"url": url, "timeout": timeout_s, "max.retries": 0}
    if username is not None:
        conf["basic.auth.user.info"] = f"{username}:{password or ''}"
    if token is not None:
        # The client insists on a cluster to go with the token; registries other than Confluent's cloud ignore it.
        conf |= {
            "bearer.auth.credentials.source": "STATIC_TOKEN",
            "bearer.auth.token": token,
            "bearer.auth.logical.cluster": "",
        }
    return SchemaRegistryClient(conf)


def _unknown(message: str) -> Rejection:
    return Rejection(Reason.SCHEMA, "schema", message)
