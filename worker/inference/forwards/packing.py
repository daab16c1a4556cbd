"""Rows laid end to end in one long sequence, so that nothing is padding. Shared by every packed family.

Where oneDNN multiplies, the sequence ends in a few spare tokens, so that its length is one of few (`_round_up`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.messages import Row

Ids = npt.NDArray[np.int32]

# The steps in which counts of tokens and of rows are rounded up, where they are small.
_TOKENS = 128
_ROWS = 16


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each row lies in the packed sequence.

    Attributes:
        token_ids: (tokens,), of all rows.
        lengths: (rows,), tokens of each row.
        bounds: (rows + 1,), cumulative lengths: row ``i`` is ``bounds[i]:bounds[i + 1]``.
        within: (tokens,), each token's place in its row, from 0.
        spare_tokens: how many tokens of no row follow the last row, so that the sequence has a rounded length.
        spare_rows: how many rows of no message follow the last row, so that the number of rows is rounded too.
    """

    token_ids: Ids
    lengths: Ids
    bounds: Ids
    within: Ids
    spare_tokens: int
    spare_rows: int

    @property
    def tokens(self) -> int:
        """The length of the sequence, spare tokens included."""
        return len(self.within) + self.spare_tokens

    def pad(self, ids: Ids) -> Ids:
        """(tokens,) to the length of the sequence; spare tokens get 0."""
        return np.pad(ids, (0, self.spare_tokens))

    def segments(self, rows: Sequence[Row]) -> Ids:
        """(tokens,): 0 before the row's segment border, 1 from there on."""
        borders = np.fromiter((row.segment_at for row in rows), dtype=np.int32, count=len(rows))
        return (self.within >= np.repeat(borders, self.lengths)).astype(np.int32)


def pack(rows: Sequence[Row], *, rounds: bool) -> Packing:
    """Lay rows end to end; with ``rounds`` the numbers of tokens and rows are rounded up."""
    lengths = np.fromiter((len(row.token_ids) for row in rows), dtype=np.int32, count=len(rows))
    bounds = np.concatenate([[0], np.cumsum(lengths)], dtype=np.int32)
    spare_tokens = spare_rows = 0
    if rounds:
        spare_tokens = int(_round_up(bounds[-1:].astype(np.intp), _TOKENS)[0] - bounds[-1])
        spare_rows = int(_round_up(np.array([len(rows)]), _ROWS)[0]) - len(rows)
    return Packing(
        token_ids=np.concatenate([row.token_ids for row in rows], dtype=np.int32),
        lengths=lengths,
        bounds=bounds,
        within=np.arange(bounds[-1], dtype=np.int32) - np.repeat(bounds[:-1], lengths),
        spare_tokens=spare_tokens,
        spare_rows=spare_rows,
    )


def slots(lengths: npt.NDArray[np.intp], *, rounds: bool) -> npt.NDArray[np.intp]:
    """The tokens of the sequence that the first one, two, ... rows of these ``lengths`` make."""
    sums = np.cumsum(lengths)
    return _round_up(sums, _TOKENS) if rounds else sums


def _round_up(counts: npt.NDArray[np.intp], least: int) -> npt.NDArray[np.intp]:
    """Each count rounded up to a multiple of ``least``, and to one of four steps between two powers of two.

    oneDNN builds a primitive for each shape that it multiplies, which takes it milliseconds. It keeps a thousand of
    them, of up to a megabyte each. With ever new counts of tokens a small model spent more time on that than on its
    products, and memory grew for hours.
    """
    steps = np.maximum(least, 1 << np.maximum(0, np.frexp(counts - 1)[1] - 3))
    rounded: npt.NDArray[np.intp] = -(-counts // steps) * steps
    return rounded
