"""Bodies at random against the readers of every API, in process: each is read or refused, and nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.http.served import Engine
from worker.avro.request import Defaults, Limits
from worker.http import drop_in, native
from worker.http.asked import Asked, Rules
from worker.http.body import parsed
from worker.http.problem import Problem
from worker.messages import LongText, Pooling, Task

RULES = Rules(
    Defaults("This is {}.", LongText.TRUNCATE, Pooling.MEAN, True),
    Limits(1000, 20, 100, 100_000),
    Engine().encode,
    Engine.identity,
    8,
)
READERS = [*(native.reader(task) for task in Task), drop_in.hugging_face, drop_in.tei, drop_in.openai]
CLASSIFY, ENTAIL, EMBED, HUGGING_FACE, TEI, OPENAI = READERS
SOUND: list[tuple[Callable[[Any, Rules], Asked], Any]] = [
    (CLASSIFY, {"text": "a", "labels": ["b"], "hypothesis_template": "It is {}.", "attributes": {"k": "v"}}),
    (CLASSIFY, [{"text": "a", "labels": ["b"]}, {"text": "c", "labels": ["d"], "multi_label": True, "top_k": 1}]),
    (ENTAIL, {"text": "a", "hypotheses": ["b"], "threshold": 0.5}),
    (EMBED, {"text": "a", "pooling": "CLS", "normalize": False, "long_text": "WINDOW_MAX"}),
    (HUGGING_FACE, {"inputs": "a", "parameters": {"candidate_labels": ["b"], "multi_label": False}}),
    (HUGGING_FACE, {"inputs": [{"text": "a", "text_pair": "b"}], "options": {"use_cache": False}}),
    (TEI, {"inputs": ["a", "b"], "normalize": True, "truncate": False}),
    (OPENAI, {"input": ["a", "b"], "model": "m", "encoding_format": "base64"}),
]
LEAVES: list[Any] = [
    None, True, False, 0, -1, 2**63, 10**400, 1e308, -0.0, "", " ", "a", "\ud800", "\u0000", "\u200b", "{}", "a" * 2000,
    [], {}, [[]], [{}], {"": {}}, ["a"] * 30, [1] * 30, {"a": 1}, "CLASSIFY", "text", [None], [[1, 2]], {"text": "a"},
]  # fmt: skip


def mutated(draw: random.Random) -> tuple[Callable[[Any, Rules], Asked], bytes]:
    """A sound body with something wrong in it, a value, a name, or bytes; and who is to read it: not always the one."""
    reader, body = draw.choice(SOUND)
    if draw.random() < 0.2:
        reader = draw.choice(READERS)
    for _ in range(draw.randrange(3)):
        body = _with_a_leaf(body, draw)
    sent = bytearray(json.dumps(body).encode("utf-8", "surrogatepass"))
    for _ in range(draw.choice((0, 0, 0, 1, 3))):
        at = draw.randrange(len(sent) + 1)
        match draw.randrange(4):
            case 0:
                sent[at:at] = bytes([draw.randrange(256)])
            case 1:
                del sent[at : at + draw.randrange(1, 9)]
            case 2:
                sent[at:at] = draw.choice(
                    (b"[" * 2000, b'{"a":' * 500, b"NaN", b"-Infinity", b"1" * 5000, b'"', b"\xff")
                )
            case _:
                sent[at:at] = sent[max(0, at - 20) : at]
    return reader, bytes(sent)


def _with_a_leaf(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        changed = _with_a_leaf(value[key], draw)
        if draw.random() < 0.2:
            return {**value, draw.choice(("x", "", "text", key + " ")): changed}
        return {**value, key: changed}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], _with_a_leaf(value[at], draw), *value[at + 1 :]]
    return draw.choice(LEAVES)


def read_all(seed: int, bodies: int) -> tuple[int, int]:
    """How many bodies were read, and how many refused."""
    draw = random.Random(seed)
    read = refused = 0
    for _ in range(bodies):
        reader, body = mutated(draw)
        try:
            asked = reader(parsed(body), RULES)
        except Problem as problem:
            refused += 1
            answer = problem.response()
            assert 400 <= answer.status_code < 500, body
            assert len(bytes(answer.body)) < 20_000, body
            json.loads(bytes(answer.body))
        else:
            read += 1
            assert 1 <= len(asked.requests) <= RULES.max_items
    return read, refused


def test_every_body_is_read_or_refused() -> None:
    read, refused = read_all(1, 4_000)
    assert read > 500
    assert refused > 500


@pytest.mark.acceptance
@pytest.mark.timeout(3600)
def test_every_body_of_a_million_is_read_or_refused() -> None:
    read, refused = read_all(2, 1_000_000)
    assert read + refused == 1_000_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "a", "labels": [' + b"1," * 400_000 + b"1]}",
        b'{"text": "a", "labels": ["b"], "attributes": {' + b",".join(b'"%d":1' % i for i in range(90_000)) + b"}}",
        b"{" + b",".join(b'"%d":1' % i for i in range(100_000)) + b"}",
        b'{"inputs": [' + b"[]," * 300_000 + b"[]]}",
        b'{"inputs": "a", "parameters": {"candidate_labels": [' + b"{}," * 300_000 + b"{}]}}",
        b"[" + b"{}," * 300_000 + b"{}]",
    ],
)
def test_a_megabyte_of_mistakes_is_one_mistake(body: bytes) -> None:
    """Reported one by one, each of these would be hundreds of megabytes."""
    for reader in READERS:
        with pytest.raises(Problem) as refused:
            reader(parsed(body), RULES)
        assert len(refused.value.detail) < 2_000
