"""What a caller asks for: a body becomes requests, and their outcomes an answer in the caller's own terms.

An API is a function of this module's types: `worker.http.native` for /v1/classify, entail and embed,
`worker.http.drop_in` for those of others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from worker.avro.request import Defaults, Limits
from worker.avro.request import request as checked_request
from worker.errors import Rejection
from worker.http.problem import Kind, Problem, of_rejection
from worker.messages import Encoded, ModelIdentity, Outcome, Request


@dataclass(frozen=True, slots=True)
class Rules:
    """By what a request is checked and completed: the stream's rules, and how many may come at once."""

    defaults: Defaults
    limits: Limits
    encode: Callable[[Request], Encoded]
    model: ModelIdentity
    max_items: int

    def require_items(self, count: int, field: str) -> None:
        """Raise Problem unless so many texts may come in one request."""
        if not count:
            raise Problem(Kind.INVALID, f"{field or 'the list'} is empty; send at least one text", field)
        if count > self.max_items:
            raise Problem(
                Kind.TOO_LARGE,
                f"{field or 'the list'} has {count} texts, http.max_items is {self.max_items}; send them in several "
                "requests or raise the limit",
                field,
            )

    def encoded(self, datum: dict[str, Any]) -> tuple[Request, Encoded]:
        """A request and its tokens. Raises Rejection."""
        request = checked_request(datum, self.defaults, self.limits)
        return request, self.encode(request)


@dataclass(frozen=True, slots=True)
class Answered:
    """A request, its tokens and its outcome."""

    request: Request
    encoded: Encoded
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests, and what makes one answer, a value of JSON, of their outcomes."""

    requests: Sequence[tuple[Request, Encoded]]
    answer: Callable[[Sequence[Answered]], Any]


# Parsed JSON and the path's own part become what is asked. Raises Problem.
Read = Callable[[Any, Rules], Asked]


def each(
    rules: Rules, items: Sequence[Any], read: Callable[[Any], dict[str, Any]], *, field: str = "", is_list: bool = True
) -> list[tuple[Request, Encoded]]:
    """Requests of items, each checked by itself.

    Args:
        rules: By which they are checked.
        items: One for each request.
        read: Makes a datum of ``xnli.InferenceRequest`` of an item; raises Rejection.
        field: What holds the items.
        is_list: The caller sent a list: a problem says the place in it.

    Raises:
        Problem: there are too many, or one is at fault: the first.
    """
    rules.require_items(len(items), field)
    found = []
    for number, item in enumerate(items):
        try:
            found.append(rules.encoded(read(item)))
        except Rejection as refused:
            raise of_rejection(refused, number if is_list else None) from None
    return found
