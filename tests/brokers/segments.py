"""Record batches as they lie in a broker's log, to be damaged there: fetches are served from the file.

A single-node cluster of our own is needed. The broker may run meanwhile; a restart after a crash would cut the log off
at a batch with a wrong checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.brokers.kafka import KafkaCluster

# Offsets within a batch of format 2: https://kafka.apache.org/documentation/#recordbatch
_LENGTH: Final = 8
_MAGIC: Final = 16
_CHECKSUM: Final = 17
_ATTRIBUTES: Final = 21
_RECORDS: Final = 61
_CODECS: Final = 0b111
UNKNOWN_CODEC: Final = 5


@dataclass(frozen=True, slots=True)
class Batch:
    """Where a batch lies in a file, and the offset of its first record."""

    path: Path
    position: int
    base_offset: int
    size: int


def batches(cluster: KafkaCluster, topic: str, partition: int = 0) -> list[Batch]:
    """The batches of a partition's first segment, in order."""
    path = cluster.directory / "node-1" / "data" / f"{topic}-{partition}" / f"{0:020}.log"
    log = path.read_bytes()
    found: list[Batch] = []
    position = 0
    while position + _RECORDS <= len(log):
        base_offset, length = struct.unpack_from(">qi", log, position)
        found.append(Batch(path, position, base_offset, _LENGTH + 4 + length))
        position += found[-1].size
    return found


def rewrite(batch: Batch, change: Callable[[bytearray], None], *, checksum: bool = True) -> None:
    """Change the bytes of a batch, not their number; with a new checksum, unless that is to be wrong."""
    with batch.path.open("r+b") as log:
        log.seek(batch.position)
        frame = bytearray(log.read(batch.size))
        change(frame)
        if checksum:
            struct.pack_into(">I", frame, _CHECKSUM, crc32c(bytes(frame[_ATTRIBUTES:])))
        log.seek(batch.position)
        log.write(frame)


def unknown_codec(frame: bytearray) -> None:
    """The batch says that it is compressed in a way that nobody knows."""
    (attributes,) = struct.unpack_from(">h", frame, _ATTRIBUTES)
    struct.pack_into(">h", frame, _ATTRIBUTES, attributes & ~_CODECS | UNKNOWN_CODEC)


def unknown_format(frame: bytearray) -> None:
    """The batch is of a format that does not exist."""
    frame[_MAGIC] = 7


def noise(frame: bytearray) -> None:
    """Where the records were, nothing can be made out: neither decompressed nor, if they were not compressed, read."""
    frame[_RECORDS:] = bytes(37 * place % 256 for place in range(len(frame) - _RECORDS))


def overrun(frame: bytearray) -> None:
    """The first record of a batch that is not compressed is longer than the batch: its end was cut off."""
    frame[_RECORDS : _RECORDS + 2] = b"\xfe\x7f"


def flip(frame: bytearray, at: bytes) -> None:
    """The first byte of a piece of the batch has one bit changed: what a bad disk does."""
    frame[frame.index(at)] ^= 1


def _table() -> tuple[int, ...]:
    table: list[int] = []
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ 0x82F63B78 if remainder & 1 else remainder >> 1
        table.append(remainder)
    return tuple(table)


_TABLE: Final = _table()


def crc32c(data: bytes) -> int:
    """The checksum of a batch (Castagnoli), which Python's zlib does not have."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = _TABLE[(remainder ^ byte) & 0xFF] ^ (remainder >> 8)
    return remainder ^ 0xFFFFFFFF
