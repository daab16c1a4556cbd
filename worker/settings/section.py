"""What a section is, and the types of values that several sections share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic_settings import NoDecode

from worker.rules import names

Property = str | int | float | bool


def listed(value: object) -> object:
    """``a,b`` or a JSON array (from the environment), one string or a list (from TOML): always a list."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        return json.loads(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def parsed(value: object) -> object:
    """A JSON object (from the environment) or a table (from TOML)."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f'is no JSON ({error}): write {{"key": "value"}}') from None


def sound(problem: Callable[[str], str | None]) -> AfterValidator:
    """A check by a rule that says what is wrong with a value."""

    def check(value: str) -> str:
        if found := problem(value):
            raise ValueError(found)
        return value

    return AfterValidator(check)


Topic = Annotated[str, sound(names.topic_problem)]
Topics = Annotated[tuple[Topic, ...], NoDecode, BeforeValidator(listed)]
Seconds = Annotated[tuple[float, ...], NoDecode, BeforeValidator(listed)]
Properties = Annotated[dict[str, Property], NoDecode, BeforeValidator(parsed)]


class Section(BaseModel):
    """A table of the TOML file. Immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
