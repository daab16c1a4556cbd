"""Payloads in Avro's binary encoding, without framing, become data. Pure."""

from __future__ import annotations

from io import BytesIO
from typing import Any, cast

import fastavro

from worker.avro.excerpt import clip, excerpt
from worker.avro.schema_walk import Schema, check
from worker.errors import Reason, Rejection


def decode(payload: bytes, writer: Schema, reader: Schema) -> dict[str, Any]:
    """Read ``payload``, written with ``writer``, as ``reader`` (which must be a record).

    Raises:
        Rejection: MALFORMED when the payload is not exactly one datum of the writer's schema, or holds text that is not
            UTF-8; TOO_LARGE for an array or map of more than 16,384 items; SCHEMA when the datum does not resolve to
            the reader's schema (Avro specification, "Schema Resolution"), which may depend on the union branches and
            enum symbols it uses.
    """
    check(payload, writer)
    # Equal canonical forms resolve to themselves, and reading without a reader's schema is twice as fast.
    target = None if writer.fingerprint == reader.fingerprint else reader.parsed
    try:
        datum: Any = fastavro.schemaless_reader(BytesIO(payload), writer.parsed, target)
    except UnicodeDecodeError as error:
        raise Rejection(
            Reason.MALFORMED,
            "decode",
            f"text that is not UTF-8 ({error.reason}): {excerpt(error.object)}; encode strings as UTF-8",
        ) from None
    except Exception as error:  # SchemaResolutionError, and what resolution trips over in odd schemas
        raise Rejection(
            Reason.SCHEMA,
            "decode",
            f"the writer's schema {writer.name} does not resolve to {reader.name}: {clip(str(error))}; "
            "compare it with the schemas that come with the worker",
        ) from error
    return cast("dict[str, Any]", datum)  # what a record resolves to
