"""Section ``schema_registry``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from worker.rules import addresses
from worker.settings.section import Section, sound

SubjectStrategy = Literal["topic_name", "record_name", "topic_record_name"]
WireFraming = Literal["prefix", "guid"]


def _registry_problem(url: str) -> str | None:
    return addresses.web_problem(url, "set schema_registry.username and schema_registry.password")


def _token_url_problem(url: str) -> str | None:
    if "," in url:
        return "write one address"
    return addresses.web_problem(url, "set schema_registry.oauth_client_id and schema_registry.oauth_client_secret")


class SchemaRegistrySettings(Section):
    """A Confluent-compatible schema registry; without ``url`` messages carry Avro single-object encoding.

    ``ca`` is a PEM file, or a folder of them, of the authorities to trust in place of the system's; ``certificate`` and
    ``key`` are PEM files of a client certificate, one file if ``key`` is left out. With the OAuth settings a token is
    fetched by the client-credentials grant, and renewed before it ends.
    """

    url: Annotated[str, sound(_registry_problem)] | None = None
    """Address of a Confluent-compatible registry; without it values carry Avro single-object encoding."""
    username: str | None = None
    """For basic authentication, with password."""
    password: SecretStr | None = None
    """For basic authentication."""
    token: SecretStr | None = None
    """Bearer token, in place of the two."""
    oauth_token_url: Annotated[str, sound(_token_url_problem)] | None = None
    """Where an OAuth token is fetched, by the client-credentials grant."""
    oauth_client_id: Annotated[str, Field(min_length=1)] | None = None
    """The OAuth client's name."""
    oauth_client_secret: SecretStr | None = None
    """The OAuth client's secret."""
    oauth_scope: str | None = None
    """The OAuth scope."""
    oauth_logical_cluster: str | None = None
    """Confluent Cloud's logical cluster."""
    oauth_identity_pool: str | None = None
    """Confluent Cloud's identity pool."""
    ca: str | None = None
    """PEM file, or a folder of them, of the authorities to trust in place of the system's."""
    certificate: str | None = None
    """PEM file of a client certificate."""
    key: str | None = None
    """PEM file of its key; one file with the certificate if left out."""
    key_password: SecretStr | None = None
    """Password of the key."""
    subject_strategy: SubjectStrategy = "topic_name"
    """How the subjects of our schemas are named."""
    framing: WireFraming = "prefix"
    """How values name their schema: prefix, its id before the value; guid, its GUID in a header."""
    auto_register: bool = False
    """Register our schemas where they are missing."""

    @model_validator(mode="after")
    def _one_auth(self) -> SchemaRegistrySettings:
        ways = {
            "schema_registry.username": self.username,
            "schema_registry.token": self.token,
            "schema_registry.oauth_client_id": self.oauth_client_id,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: keep one")
        if (self.username is None) != (self.password is None):
            raise ValueError("schema_registry.username and schema_registry.password come together: set both or neither")
        oauth = (self.oauth_token_url, self.oauth_client_id, self.oauth_client_secret)
        if any(value is not None for value in oauth) and None in oauth:
            raise ValueError(
                "schema_registry.oauth_token_url, oauth_client_id and oauth_client_secret come together: set all three "
                "or none"
            )
        if self.certificate is None and (self.key is not None or self.key_password is not None):
            raise ValueError(
                "schema_registry.key belongs to a certificate: set schema_registry.certificate, or leave the key out"
            )
        return self
