"""The transformer layer over packed rows, and its parts. Shared by the families whose layers are of this kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from worker.inference.forwards.attention import Attention
from worker.inference.forwards.linear import Linear, MakeLinear, rows_of

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Norm:
    """The norm of a sublayer, ahead of it (pre-norm) or behind its sum (post-norm, Vaswani et al. 2017, as in BERT)."""

    module: Step
    leads: bool = False

    def before(self, x: Tensor) -> Tensor:
        """What the sublayer sees of ``x``."""
        return self.module(x) if self.leads else x

    def after(self, total: Tensor) -> Tensor:
        """What follows of the sum of the sublayer's output and its residual."""
        return total if self.leads else self.module(total)


class Projection:
    """Query, key and value of self-attention, one product for all three.

    Args:
        fused: of query, key and value, one behind the other.
        heads: of attention.
        make: of linear layers.
        apart: whether the query is a product of its own, as the last layer needs it: there few tokens have one.
    """

    def __init__(self, fused: nn.Linear, heads: int, make: MakeLinear, *, apart: bool) -> None:
        self._heads = heads
        self._apart: tuple[Linear, Linear] | None = None
        if apart:
            size = fused.out_features // 3
            self._apart = make(rows_of(fused, 0, size), None), make(rows_of(fused, size, 3 * size), None)
        else:
            self._all = make(fused, None)

    def __call__(self, x: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, hidden size) to query, key and value, (tokens, heads, head size) each.

        With ``chosen``, (rows,), which only a projection ``apart`` takes, the queries are of those tokens alone.
        """
        if self._apart is None:
            query, key, value = self._all(x).view(len(x), 3, self._heads, -1).unbind(1)
            return query, key, value
        of_query, of_key_and_value = self._apart
        some = x if chosen is None else x[chosen]
        key, value = of_key_and_value(x).view(len(x), 2, self._heads, -1).unbind(1)
        return of_query(some).view(len(some), self._heads, -1), key, value


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """Self-attention and feed-forward, each with a residual and a norm."""

    project: Projection
    out: Linear
    norm_attention: Norm
    up: Linear
    down: Linear
    norm_output: Norm

    def __call__(self, x: Tensor, attention: Attention, *, chosen_only: bool = False) -> Tensor:
        """(tokens, hidden size) to the same; with ``chosen_only`` to each row's chosen token, (rows, hidden size)."""
        chosen = attention.chosen if chosen_only else None
        query, key, value = self.project(self.norm_attention.before(x), chosen)
        if chosen is not None:  # whatever follows looks at no other token
            x = x[chosen]
        context = attention(query, key, value, chosen_only=chosen_only)
        x = self.norm_attention.after(self.out(context.flatten(1), x))
        return self.norm_output.after(self.down(self.up(self.norm_output.before(x)), x))
