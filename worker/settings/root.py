"""The table of all sections."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.rules import names
from worker.settings.brokers import KafkaSettings
from worker.settings.checkpoint import ModelSettings
from worker.settings.label_set_limits import LabelSetSettings
from worker.settings.observation import LogSettings
from worker.settings.processing import (
    BatchSettings,
    CacheSettings,
    DeadLetterSettings,
    DeliverySettings,
    LimitSettings,
    RetrySettings,
)
from worker.settings.schema_registry import SchemaRegistrySettings
from worker.settings.serving import HttpSettings
from worker.settings.topic_names import TopicSettings

PREFIX = "XNLI_"


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
    label_sets: LabelSetSettings = Field(default_factory=LabelSetSettings)
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
