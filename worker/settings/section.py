"""What a section is, and the types of values that several sections share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_settings import NoDecode

from worker.rules import names

Property = str | int | float | bool


def listed(value: object) -> object:
    """``a,b`` or a JSON array (from the environment), one string or a list (from TOML): always a list."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        return _json(text, '["value", "value"]')
    return [part.strip() for part in text.split(",") if part.strip()]


def parsed(value: object) -> object:
    """A JSON object (from the environment) or a table (from TOML)."""
    return _json(value, '{"key": "value"}') if isinstance(value, str) else value


def _json(text: str, mend: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a bare ValueError
        raise ValueError(f"is no JSON ({error}): write {mend}") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def sound(problem: Callable[[str], str | None]) -> AfterValidator:
    """A check by a rule that says what is wrong with a value."""

    def check(value: str) -> str:
        if found := problem(value):
            raise ValueError(found)
        return value

    return AfterValidator(check)


Topic = Annotated[str, sound(names.topic_problem)]
Topics = Annotated[
    tuple[Topic, ...],
    NoDecode,
    BeforeValidator(listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Seconds = Annotated[tuple[float, ...], NoDecode, BeforeValidator(listed)]
Properties = Annotated[dict[str, Property], NoDecode, BeforeValidator(parsed)]


class Section(BaseModel):
    """A table of the TOML file. Immutable, and strict about its keys."""

    # The text under a field is its description: in `config init`, in the JSON Schema and in the documents.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)
