"""fastavro's own writer: any schema, any datum that fits it, and the peer of `worker.avro.writing`."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import fastavro

from worker.avro.schema_walk import Schema


def to_bytes(datum: Mapping[str, Any], schema: Schema) -> bytes:
    """The datum in Avro's binary encoding."""
    buffer = BytesIO()
    fastavro.schemaless_writer(buffer, schema.parsed, datum)
    return buffer.getvalue()
