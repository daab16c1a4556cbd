"""Section ``schema_registry``."""

from __future__ import annotations

from typing import Literal

from pydantic import SecretStr, model_validator

from worker.settings.section import Section

SubjectStrategy = Literal["topic_name", "record_name", "topic_record_name"]
WireFraming = Literal["prefix", "guid"]


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
