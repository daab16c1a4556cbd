"""Feed the decoder what strangers might send: ``python -m tests.faults.fuzz_decode --seed 1 --count 1000000``.

Fails when an input is answered by anything but a request or a rejection, or takes longer than 100 ms. An input that is
slow once is timed again, and its best time counts: the limit is on our code and not on what else the machine does.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.builders import label_sets
from tests.fastavro_bytes import to_bytes
from worker.avro import json_request, request, schema_walk
from worker.avro.codec import Codecs
from worker.avro.request import Defaults, Limits
from worker.errors import Rejection
from worker.messages import Headers, LongText, Pooling

LIMIT_S = 0.1
DEFAULTS = Defaults(
    "This is {}.", LongText.TRUNCATE, Pooling.MEAN, normalize=True, label_sets=label_sets(set=["x", "y"])
)
LIMITS = Limits(max_text_chars=100_000, max_labels=256, max_label_chars=500, max_message_bytes=1_048_576)
CODECS = Codecs()
FRAME = CODECS.encode_request(json_request.request({"id": "", "text": ""}))[0][:10]
# Encodings that decoders trip over: large, negative, padded and endless numbers, block counts, broken UTF-8.
TROUBLE = (
    b"\xff" * 9 + b"\x01",
    b"\xfe" + b"\xff" * 8 + b"\x01",
    b"\x80" * 9 + b"\x00",
    b"\xff" * 30,
    b"\x01\x02\x00",
    b"\x80\x00",
    b"\x01",
    b"\x03",
    b"\xfe\xff\xff\x0f",
    b"\x06\xff\xfe\xfd",
    b"\x06\xed\xa0\x80",
    b"\x02\x00",
)

Message = tuple[bytes, Headers]


def noise(rng: random.Random) -> Message:
    start = rng.choice((b"", b"\x00", b"\xc3\x01", FRAME))
    headers: Headers = ()
    if rng.random() < 0.1:
        headers = (("__value_schema_id", rng.choice((b"\x01", b"\x00", b"")) + rng.randbytes(rng.choice((4, 16, 3)))),)
    return start + rng.randbytes(rng.randrange(80)), headers


def words(rng: random.Random, most: int) -> str:
    return "".join(
        rng.choice(("a", " ", "é", "語", "😀", "{}", "{0}", "\x00", "\u200b")) for _ in range(rng.randrange(most))
    )


def valid(rng: random.Random) -> bytes:
    fields: dict[str, Any] = {
        "id": words(rng, 6),
        "text": words(rng, 60),
        "task": rng.choice(("CLASSIFY", "CLASSIFY", "ENTAIL", "EMBED")),
        "labels": [words(rng, 8) for _ in range(rng.randrange(5))],
        "label_set": rng.choice((None, None, "set", "other")),
        "hypothesis_template": rng.choice((None, "is {}", words(rng, 9))),
        "hypotheses": [words(rng, 8) for _ in range(rng.randrange(3))],
        "top_k": rng.choice((None, 1, -5)),
        "threshold": rng.choice((None, 0.5, float("nan"))),
        "long_text": rng.choice((None, "WINDOW_MAX")),
        "attributes": {words(rng, 5): words(rng, 5) for _ in range(rng.randrange(3))},
    }
    return CODECS.encode_request(json_request.request(fields))[0]


def mutated(rng: random.Random) -> Message:
    value = bytearray(valid(rng))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(10, len(value) + 1) if rng.random() < 0.95 else rng.randrange(len(value) + 1)
        match rng.randrange(5):
            case 0 if at < len(value):
                value[at] ^= 1 << rng.randrange(8)
            case 1:
                del value[at:]
            case 2:
                value[at:at] = rng.choice(TROUBLE)
            case 3:
                value[at : at + rng.randrange(12)] = rng.choice(TROUBLE)
            case _:
                del value[at : at + rng.randrange(1, 9)]
        if len(value) <= 10:
            break
    return bytes(value), ()


def large(rng: random.Random) -> Message:
    """Up to a megabyte of one piece, where an array, a map or a string may be."""
    size = rng.choice((1_000, 30_000, 300_000, 1_000_000))
    piece = rng.choice((b"\x00", b"\x02a", b"\x02\x00", b"\x02\x02a", *TROUBLE))
    body = (piece * (size // len(piece) + 1))[:size]
    count = to_bytes({"n": size // len(piece)}, COUNT)
    head = rng.choice((b"", b"\x021\x02t\x00", b"\x021", b"\x021\x02t\x00\x00\x00\x00\x00\x00" + bytes(6)))
    return FRAME + head + rng.choice((b"", count)) + body + bytes(13), ()


COUNT = schema_walk.schema(
    '{"type": "record", "name": "Count", "fields": [{"name": "n", "type": "long"}]}', reader=True
)


def receive(message: Message) -> str:
    value, headers = message
    try:
        datum = CODECS.read_request(value, headers, LIMITS.max_message_bytes)
        request.request(datum, DEFAULTS, LIMITS)
    except Rejection as rejection:
        return f"{rejection.reason} ({rejection.stage})"
    return "accepted"


def timed(message: Message) -> tuple[str, float]:
    begun = time.perf_counter()
    answer = receive(message)
    return answer, time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1_000_000)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    kinds: list[Callable[[random.Random], Message]] = [noise, mutated]

    answers: Counter[str] = Counter()
    slowest_s, slowest = 0.0, b""
    for number in range(asked.count):
        message = large(rng) if number % 5_000 == 0 else rng.choice(kinds)(rng)
        try:
            answer, took_s = timed(message)
        except Exception:
            print(f"input {number} of seed {asked.seed}: {message[0][:200].hex()} {message[1]}")
            raise
        answers[answer] += 1
        if took_s > slowest_s:
            took_s = min(took_s, *(timed(message)[1] for _ in range(3)))
            if took_s > slowest_s:
                slowest_s, slowest = took_s, message[0]
    for answer, times in answers.most_common():
        print(f"{times:>10}  {answer}")
    print(f"{asked.count} inputs of seed {asked.seed}: slowest {slowest_s * 1e3:.1f} ms, {len(slowest)} bytes")
    if slowest_s > LIMIT_S:
        print(f"over {LIMIT_S * 1e3:.0f} ms: {slowest[:100].hex()}...")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
