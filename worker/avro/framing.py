"""Which schema a value was written with: the wire formats, told apart by bytes and headers. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

from worker.avro.excerpt import excerpt
from worker.errors import Reason, Rejection
from worker.messages import Headers

SCHEMA_ID_HEADER: Final = "__value_schema_id"

_SINGLE_OBJECT: Final = b"\xc3\x01"


class Framing(StrEnum):
    """How a value names its writer's schema."""

    CONFLUENT_ID = "schema id"
    CONFLUENT_GUID = "schema guid"
    SINGLE_OBJECT = "fingerprint"


class Frame(NamedTuple):
    """A payload and the name of its writer's schema.

    ``key`` is the decimal schema id, the GUID in its usual text form, or the fingerprint as 16 hex digits in the byte
    order of the wire.
    """

    framing: Framing
    key: str
    payload: bytes


def frame(value: bytes, headers: Headers, max_message_bytes: int | None = None) -> Frame:
    """Tell the wire formats apart.

    A header ``__value_schema_id`` wins, as in Confluent's readers; it holds ``01`` and the 16 bytes of a GUID, or
    ``00`` and a big-endian schema id, and the value is then the bare payload. Without it the value begins with ``00``
    and the schema id, or with ``C3 01`` and the little-endian CRC-64-AVRO fingerprint (Avro's single-object encoding).

    Raises:
        Rejection: MALFORMED, or TOO_LARGE for a value over ``max_message_bytes``.
    """
    if max_message_bytes is not None and len(value) > max_message_bytes:
        raise Rejection(
            Reason.TOO_LARGE,
            "frame",
            f"the value has {len(value)} bytes, limits.max_message_bytes is {max_message_bytes}; "
            "send a shorter text or raise the limit",
        )
    for name, schema_id in headers:
        if name == SCHEMA_ID_HEADER and schema_id is not None:
            if len(schema_id) == 17 and schema_id[0] == 1:
                return Frame(Framing.CONFLUENT_GUID, str(UUID(bytes=schema_id[1:])), value)
            if len(schema_id) == 5 and schema_id[0] == 0:
                return Frame(Framing.CONFLUENT_ID, str(int.from_bytes(schema_id[1:], "big")), value)
            raise Rejection(
                Reason.MALFORMED,
                "frame",
                f"header {SCHEMA_ID_HEADER} is {excerpt(schema_id)}; "
                "it must hold 01 and a GUID of 16 bytes, or 00 and a schema id of 4 bytes",
            )
    if value[:1] == b"\x00" and len(value) >= 5:
        return Frame(Framing.CONFLUENT_ID, str(int.from_bytes(value[1:5], "big")), value[5:])
    if value[:2] == _SINGLE_OBJECT and len(value) >= 10:
        return Frame(Framing.SINGLE_OBJECT, value[2:10].hex(), value[10:])
    if value.lstrip()[:1] in {b"{", b"["}:
        raise Rejection(
            Reason.MALFORMED,
            "frame",
            f"the value begins {excerpt(value[:12])}, which looks like JSON: send Avro, or use xnli-worker send, which "
            "makes Avro of JSON",
        )
    raise Rejection(
        Reason.MALFORMED,
        "frame",
        f"the value begins {excerpt(value[:12])} and has {len(value)} bytes; it must begin with 00 and a schema id of "
        f"4 bytes, or with C3 01 and a fingerprint of 8 bytes, or come with a header {SCHEMA_ID_HEADER}",
    )
