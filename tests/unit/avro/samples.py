"""Avro by hand: numbers, strings and schemas as the tests of this folder write them."""

from __future__ import annotations

import json
from typing import Any


def number(value: int) -> bytes:
    """Avro's zig-zag variable-length number."""
    zigzag = (value << 1) ^ (value >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])


def string(value: str) -> bytes:
    return number(len(value.encode())) + value.encode()


def record(*fields: tuple[str, Any]) -> str:
    return json.dumps({"type": "record", "name": "R", "fields": [{"name": n, "type": t} for n, t in fields]})
