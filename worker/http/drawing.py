"""Lines and bars as SVG, without a script and without a style of their own, which the page's policy forbids. Pure."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

_WIDTH: Final = 120
_HEIGHT: Final = 30


def text(value: object) -> str:
    """Text from outside, as HTML."""
    return html.escape(str(value))


def spark(values: Sequence[float]) -> str:
    """A line of values, oldest first, from 0 up; what it shows stands beside it in numbers, so it is for eyes alone."""
    path = area = ""
    if len(values) > 1:
        most = max(values) or 1.0
        step = _WIDTH / (len(values) - 1)
        points = [
            f"{index * step:.1f},{_HEIGHT - 1 - (_HEIGHT - 3) * max(0.0, value) / most:.1f}"
            for index, value in enumerate(values)
        ]
        path = "M" + " L".join(points)
        area = f"{path} L{_WIDTH},{_HEIGHT} L0,{_HEIGHT} Z"
    return (
        f'<svg class="spark" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="area" d="{area}"/><path class="line" d="{path}"/></svg>'
    )


def bar(part: float) -> str:
    """A bar that is full at 1; its number stands beside it."""
    width = 100 * min(1.0, max(0.0, part))
    return (
        '<svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="ground" width="100" height="12" rx="3"/>'
        f'<rect class="part" width="{width:.1f}" height="12" rx="3"/></svg>'
    )
