"""A schema registry: the schemas that others wrote with, and the ids of ours.

Reading a schema by id or GUID happens on the Kafka thread while records wait, so it is asked for once, with a short
timeout and no retry: `RegistryAway` goes up at once and the loop, which can wait while it polls, tries again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, TypeVar

from worker.avro.excerpt import clip
from worker.avro.framing import Framing
from worker.avro.registry_access import Access
from worker.avro.schema_walk import Schema, schema
from worker.errors import Reason, RegistryAway, Rejection, SettingsError

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import RegisteredSchema
    from confluent_kafka.schema_registry import Schema as RegistrySchema

# Schemas by id or GUID kept; each is a few kilobytes, and an id's schema never changes.
_MAX_CACHED: Final = 512
# References one schema may pull in. Each is a request to the registry while records wait.
_MAX_REFERENCES: Final = 32
# How long "no such schema" is believed. A producer that writes to the wrong registry sends one unknown id a million
# times; a registry that follows another may learn of an id seconds after the producer.
_UNKNOWN_FOR_S: Final = 10.0

_CREDENTIALS: Final = "schema_registry.username and password, token, or the settings of OAuth"
_UNTRUSTED: Final = "; if its certificate is of an authority of your own, set schema_registry.ca to that one's"

_T = TypeVar("_T")


class _UnknownError(Exception):
    """The registry knows no such schema, subject or version."""


class Registry:
    """A Confluent-compatible registry. It waits for nothing: each question is asked once.

    Args:
        url: Its address, or several with commas between.
        access: Credentials and certificates.
        timeout_s: For one call.
        clock: Monotonic seconds.

    Raises:
        SettingsError: the address cannot be one, or a certificate cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        access: Access | None = None,
        timeout_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from worker.avro import registry_client  # noqa: PLC0415 (takes half a second: see there)

        self._url = url
        self._clock = clock
        self._client = registry_client.connect(url, access or Access(), timeout_s)
        self._forget_token = partial(registry_client.forget_token, self._client)
        self._fetched = lru_cache(maxsize=_MAX_CACHED)(self._fetch)
        self._refused: dict[tuple[Framing, str], tuple[float, str]] = {}

    def schema(self, framing: Framing, key: str) -> Schema:
        """The writer's schema of a frame: ``key`` is its schema id in decimal, or its GUID as text.

        Raises:
            Rejection: SCHEMA, when the registry does not know it or it is none that Avro data can be read with.
            RegistryAway: the registry does not answer, answers with an error of its own, or does not let us in.
        """
        name = (framing, key)
        believed_until, message = self._refused.get(name, (0.0, ""))
        if message and self._clock() < believed_until:
            raise _unusable(message)
        try:
            return self._fetched(*name)
        except Rejection as rejection:
            if len(self._refused) >= _MAX_CACHED:
                self._refused.clear()
            self._refused[name] = (self._clock() + _UNKNOWN_FOR_S, str(rejection))
            raise

    def _fetch(self, framing: Framing, key: str) -> Schema:
        try:
            if framing is Framing.CONFLUENT_ID:
                found = self._ask(partial(self._client.get_schema, int(key)))
            else:
                found = self._ask(partial(self._client.get_schema_by_guid, key))
            references: dict[tuple[str, int], str] = {}
            self._collect(found, references)
        except _UnknownError as error:
            raise _unusable(
                f"the registry at {self._url} knows no {framing} {key} ({error}); "
                "write with a schema that is registered there"
            ) from None
        if (found.schema_type or "AVRO") != "AVRO":
            raise _unusable(f"{framing} {key} is a schema of type {found.schema_type}; only AVRO is read")
        if rules := _rules(found):
            raise _unusable(
                f"{framing} {key} is a schema with rules: {rules}. They are not carried out here, and what they "
                "encrypt or change would be judged as it lies; write with a schema that has none"
            )
        try:
            return schema(found.schema_str or "", tuple(references.values()))
        except Rejection as rejection:
            raise _unusable(f"{framing} {key}: {rejection}") from rejection

    def _collect(self, found: RegistrySchema, into: dict[tuple[str, int], str]) -> None:
        """The texts of all schemas ``found`` refers to, each after those it refers to itself."""
        for reference in found.references or ():
            name, version = str(reference.subject), int(reference.version or 0)
            if (name, version) in into:
                continue
            if len(into) >= _MAX_REFERENCES:
                raise _unusable(f"the writer's schema refers to more than {_MAX_REFERENCES} others; inline them")
            # A soft-deleted version is still what its data was written with.
            target = self._ask(partial(self._client.get_version, name, version, deleted=True)).schema
            if rules := _rules(target):
                raise _unusable(
                    f"the writer's schema refers to {name!r}, a schema with rules: {rules}; write with none"
                )
            self._collect(target, into)
            into[name, version] = target.schema_str or ""

    def registered(self, subject: str, file: str, text: str, *, register: bool) -> RegisteredSchema:
        """What the registry says of a schema of ours: the text of ``schemas/FILE``, under ``subject``.

        Args:
            subject: The registry's name for the values of a topic.
            file: Where the text comes from, for the message.
            text: The schema as JSON.
            register: Register it if it is missing; else it must be there.

        Raises:
            SettingsError: the registry does not know the schema, or does not let us in.
            RegistryAway: the registry does not answer, or answers with an error of its own.
        """
        from confluent_kafka.schema_registry import Schema as RegistrySchema  # noqa: PLC0415 (see registry_client)

        ours = RegistrySchema(text, "AVRO")
        find = self._client.register_schema_full_response if register else self._client.lookup_schema
        try:
            return self._ask(partial(find, subject, ours), starting=True)
        except _UnknownError as error:
            raise SettingsError(
                f"{self.place(subject)} has no version equal to schemas/{file} ({error}); "
                "register that file there (xnli-worker topics create --schemas), or set "
                "schema_registry.auto_register = true"
            ) from None

    def declare(self, subject: str, file: str, text: str, compatibility: str) -> None:
        """Register a schema of ours where it is missing, and set which later versions its subject takes.

        Args:
            subject: The registry's name for the values of a topic.
            file: Where the text comes from, for the message.
            text: The schema as JSON.
            compatibility: As the registry names it, such as FULL_TRANSITIVE.

        Raises:
            SettingsError: the registry refuses the schema, or does not let us in.
            RegistryAway: the registry does not answer, or answers with an error of its own.
        """
        self.registered(subject, file, text, register=True)
        self._ask(partial(self._client.set_compatibility, subject, compatibility), starting=True)

    def place(self, subject: str) -> str:
        """Subject and registry, as messages name them."""
        return f"subject {subject!r} in the registry at {self._url}"

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
            if status in {401, 403}:
                self._forget_token()
            if starting and status is not None and 400 <= status < 500 and status not in {404, 408, 429}:
                mend = f"check {_CREDENTIALS}" if status in {401, 403} else "see its log"
                raise SettingsError(f"the registry at {self._url} refuses: {said}; {mend}") from error
            if isinstance(error, ValueError) and "is not a valid Rule" in said:  # its client knows no such kind of rule
                raise _unusable(
                    f"a schema in the registry at {self._url} has rules that nobody knows: {said}"
                ) from error
            mend = _UNTRUSTED if "CERTIFICATE_VERIFY_FAILED" in said else ""
            raise RegistryAway(f"the registry at {self._url} does not answer as it should: {said}{mend}") from error


def _rules(found: RegistrySchema) -> str:
    """The rules that whoever reads with a schema has to carry out, and we cannot; empty if there are none."""
    rule_set = found.rule_set
    if rule_set is None:
        return ""
    kinds = (rule_set.domain_rules, rule_set.encoding_rules, rule_set.migration_rules)
    rules = [rule for kind in kinds for rule in kind or () if not rule.disabled]
    return clip(", ".join(f"{rule.type} {rule.name!r}" for rule in rules))


def _unusable(message: str) -> Rejection:
    return Rejection(Reason.SCHEMA, "schema", message)
