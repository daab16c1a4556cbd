"""The label sets that are known, in bounded memory: each as the bytes it was read as, and those in use ready.

A hundred thousand sets are a few hundred bytes each as they were written, and several times that as objects. So a set
is checked when it arrives, kept as it is, and made ready when a request names it, in the request's language.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final

from worker.label_sets import record
from worker.label_sets.record import RefusedError
from worker.messages import LabelSetVersion
from worker.rules.label_set import LabelSet, normal_code

# What the dictionary and the allocator take for a set, at most, beside its name and its value.
ENTRY_BYTES: Final = 112
# Labels of all sets that are ready. Each takes some 300 bytes with its sentence.
READY_LABELS: Final = 32_768
# Partition and offset stand before the value: as objects of their own they would take more than most names.
_PLACE: Final = struct.Struct(">iq")
# In place of a partition: the set came from a file, and the offset is a digest of it.
_FILE: Final = -1


class ReadySets:
    """Sets as requests are completed from them, each made ready when it is first named, in the request's language.

    All is called on one thread, which need not be the one that changes the sets: a set is looked up in one step.

    Args:
        packed: The sets by name, as `StoredSets` keeps them.
        template: The worker's own, for sets that have none.
    """

    def __init__(self, packed: Mapping[str, bytes], template: str) -> None:
        self._packed = packed
        self._template = template
        # The most recently used last. A set that was put anew is told by its bytes being others.
        self._ready: OrderedDict[tuple[str, str | None], tuple[bytes, LabelSet]] = OrderedDict()
        self._ready_labels = 0

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._packed))

    def find(self, name: str, language: str | None) -> LabelSet | None:
        """The set of this name, worded for a language; None if there is none."""
        packed = self._packed.get(name)
        if packed is None:
            return None
        key = (name, normal_code(language))
        ready = self._ready.get(key)
        if ready is not None and ready[0] is packed:
            self._ready.move_to_end(key)
            return ready[1]
        return self._make_ready(key, packed)

    def _make_ready(self, key: tuple[str, str | None], packed: bytes) -> LabelSet:
        name, code = key
        partition, offset = _PLACE.unpack_from(packed)
        found = record.read(name, packed[_PLACE.size :])
        place = f"{partition}/{offset}" if partition != _FILE else f"file/{offset:016x}"
        version = LabelSetVersion(name, found.version or place)
        made = found.complete(version, code, self._template)
        self._drop(key)
        self._ready[key] = packed, made
        self._ready_labels += len(made.labels)
        while self._ready_labels > READY_LABELS:
            self._drop(next(iter(self._ready)))
        return made

    def _drop(self, key: tuple[str, str | None]) -> None:
        _, dropped = self._ready.pop(key, (b"", None))
        if dropped is not None:
            self._ready_labels -= len(dropped.labels)


class StoredSets:
    """Label sets by name. All is called on one thread; another one has a `view` of its own.

    Args:
        max_bytes: What names and values may take, with all that keeping them costs.
        template: The worker's own, for sets that have none.
    """

    def __init__(self, max_bytes: int, template: str) -> None:
        self._max_bytes = max_bytes
        self._template = template
        self._packed: dict[str, bytes] = {}
        self._ready = self.view()
        self.bytes = 0
        self.changes = 0  # grows with each

    def view(self) -> ReadySets:
        """The same sets, for another thread."""
        return ReadySets(self._packed, self._template)

    def __len__(self) -> int:
        return len(self._packed)

    def __contains__(self, name: str) -> bool:
        return name in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def put(self, name: str, value: bytes, partition: int, offset: int) -> bool:
        """Take a set in, or its new version in place of the former.

        Returns:
            Whether the set is another than the former and says that it is the same version.

        Raises:
            RefusedError: the value holds no set, or there is no room for it; what was there stays.
        """
        found = record.read(name, value)
        packed = _PLACE.pack(partition, offset) + value
        former = self._packed.get(name)
        grown = self.bytes + _cost(name, packed) - (0 if former is None else _cost(name, former))
        if grown > self._max_bytes and (former is None or len(packed) > len(former)):
            raise RefusedError(
                f"with it all sets would take {grown} bytes, label_sets.max_bytes is {self._max_bytes}; raise it, or "
                "take sets away (xnli-worker label-sets delete)"
            )
        self._packed[name] = packed
        self.bytes = grown
        self.changes += 1
        if former is None or found.version is None or (was := former[_PLACE.size :]) == value:
            return False
        old = record.read(name, was)
        return old.version == found.version and old != found

    def put_file(self, name: str, value: bytes) -> None:
        """Take in a set that stands in a file. Without a version of its own it has one by its content.

        Raises:
            RefusedError: as `put`.
        """
        digest = int.from_bytes(hashlib.sha256(value).digest()[:8], "big") >> 1  # the sign's bit stays free
        self.put(name, value, _FILE, digest)

    def remove(self, name: str) -> None:
        """Forget a set, if there is one of this name."""
        packed = self._packed.pop(name, None)
        if packed is not None:
            self.bytes -= _cost(name, packed)
            self.changes += 1

    def find(self, name: str, language: str | None) -> LabelSet | None:
        """The set of this name, worded for a language; None if there is none."""
        return self._ready.find(name, language)


def _cost(name: str, packed: bytes) -> int:
    """Bytes that a set takes."""
    return sys.getsizeof(name) + sys.getsizeof(packed) + ENTRY_BYTES
