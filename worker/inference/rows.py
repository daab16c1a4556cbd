"""Many requests to one list of distinct rows, and back.

A batch holds requests with different label sets. The model sees rows; each is one premise-hypothesis pair, or one text
to embed. `flatten` lists the rows of all requests and keeps one of each kind, so that a pair that occurs twice in a
batch is computed once. `Flat.restore` gives every request the results of its own rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from worker.messages import Row


def row_key(row: Row) -> bytes:
    """A 16-byte BLAKE2b digest of what the model tells rows apart by: token ids, segment border and language.

    It is a digest and not the ids themselves, because a cache keeps keys for long and a row can have 512 tokens. At 128
    bits no two different rows of a worker's life are expected to collide.
    """
    digest = blake2b(row.token_ids.tobytes(), digest_size=16)
    digest.update(b"%d/%d" % (row.segment_at, -1 if row.language_id is None else row.language_id))
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Flat:
    """The distinct rows of several requests.

    ``rows`` and ``keys`` are in order of first appearance. ``which`` is an intp array with one entry for each row as
    requested: its index in ``rows``. Request ``i`` owns ``which[starts[i]:starts[i + 1]]``.
    """

    rows: tuple[Row, ...]
    keys: tuple[bytes, ...]
    which: npt.NDArray[np.intp]
    starts: tuple[int, ...]

    def restore(self, results: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Turn one result per distinct row, (rows, width), into one array per request, (its rows, width), in order."""
        return [results[self.which[start:stop]] for start, stop in zip(self.starts, self.starts[1:], strict=False)]


def flatten(requests: Iterable[Sequence[Row]]) -> Flat:
    """List the rows of several requests and keep one of each kind."""
    index: dict[bytes, int] = {}
    rows: list[Row] = []
    which: list[int] = []
    starts = [0]
    for request in requests:
        for row in request:
            key = row_key(row)
            at = index.setdefault(key, len(rows))
            if at == len(rows):
                rows.append(row)
            which.append(at)
        starts.append(len(which))
    return Flat(tuple(rows), tuple(index), np.asarray(which, dtype=np.intp), tuple(starts))
