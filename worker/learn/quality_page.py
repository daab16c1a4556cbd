"""A report as one page: whether scores come true, what is taken for what, and what abstaining gains."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from worker.errors import SettingsError
from worker.learn import extra
from worker.learn.quality import Report

_MOST_LABELS: Final = 20
_LABEL_CHARS: Final = 22
_OTHERS: Final = "(others)"
_NONE: Final = "(none)"
# One of these has the letters of most labels; the first that is installed of each script serves.
_FONTS: Final = (
    *("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans Arabic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS", "PingFang SC", "Microsoft YaHei"),
)
_INK, _SOFT, _BLUE, _ORANGE = "#1f2937", "#9ca3af", "#2563eb", "#d97706"


def write(report: Report, title: str, path: Path) -> None:
    """Draw a report.

    Args:
        report: The figures.
        title: What was measured: the model, the examples.
        path: A PNG file.

    Raises:
        SettingsError: the extra ``learn`` is not installed, or the file cannot be written.
    """
    extra.require("matplotlib")
    import matplotlib as mpl  # noqa: PLC0415 (an extra)
    from matplotlib import font_manager  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    installed = {font.name for font in font_manager.fontManager.ttflist}
    style: Any = {
        "font.family": [name for name in _FONTS if name in installed] + ["sans-serif"],
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _SOFT,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.titleweight": "bold",
        "axes.titlesize": 11,
        "text.parse_math": False,  # a label may hold a dollar sign
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that no font has: the page shows a box for each
        figure = Figure(
            figsize=(13, 11), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15, hspace=0.05, wspace=0.05)
        )
        FigureCanvasAgg(figure)
        figure.suptitle(f"{title}\n{_summary(report)}", fontsize=12, linespacing=1.6)
        places = figure.subplot_mosaic([["reliability", "coverage"], ["confusion", "confusion"]], height_ratios=[4, 6])
        _draw_reliability(places["reliability"], report)
        _draw_coverage(places["coverage"], report)
        _draw_confusion(figure, places["confusion"], report)
        try:
            figure.savefig(path, format="png", dpi=120)
        except OSError as error:
            raise SettingsError(f"{path}: cannot be written ({error.strerror})") from None


def require_place(path: Path) -> None:
    """Raise SettingsError where no page may be written: before the work, not after it."""
    if path.is_dir():
        raise SettingsError(f"{path}: is a folder; name a PNG file in it, such as {path / 'page.png'}")
    if path.suffix.lower() != ".png":
        raise SettingsError(f"{path}: the page is a PNG; call the file {path.with_suffix('.png')}")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: there is no folder {path.parent}")


def _summary(report: Report) -> str:
    error = report.calibration_error
    told = f"macro F1 {report.macro_f1:.3f}    accuracy {report.accuracy:.3f}    Brier {report.brier:.4f}    "
    told += f"calibration error {error.value:.3f} ({error.low:.3f} to {error.high:.3f})"
    raw = report.raw_calibration_error
    return told if raw is None else f"{told}, raw {raw.value:.3f}"


def _draw_reliability(axes: Any, report: Report) -> None:
    scores = [one.score for one in report.reliability]
    shares = [one.share for one in report.reliability]
    axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle="--", label="as often as they say")
    axes.vlines(scores, scores, shares, color=_ORANGE, linewidth=2, alpha=0.6, label="the error")
    axes.plot(scores, shares, color=_BLUE, linewidth=1.5, marker="o", markersize=5, label="bins of equal mass")
    axes.set(
        title="Reliability: how often what a score says comes true",
        xlabel="mean score of the bin",
        ylabel="share that came true",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axes.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_coverage(axes: Any, report: Report) -> None:
    covered = [100 * point.coverage for point in report.coverage]
    right = [100 * point.accuracy for point in report.coverage]
    axes.plot(covered, right, color=_BLUE, linewidth=1.5, marker="o", markersize=4)
    lowest = min(right, default=0.0)
    axes.set(
        title="Abstention: accuracy of the surest decisions",
        xlabel="decisions made, in %",
        ylabel="of those right, in %",
        xlim=(0, 102),
        ylim=(max(0.0, lowest - max(1.0, (100 - lowest) / 4)), 100 + (100 - lowest) / 20 + 0.05),
    )
    axes.grid(color=_SOFT, alpha=0.25)


def _draw_confusion(figure: Any, axes: Any, report: Report) -> None:
    names, counts = matrix(report)
    # Several labels may be predicted for one example: a row need not add up to the label's examples.
    wholes = np.asarray([report.labels[name].support if name in report.labels else 0 for name in names])
    wholes = np.where(wholes > 0, wholes, counts.sum(axis=1))[:, None]
    shares = np.divide(counts, wholes, out=np.zeros(counts.shape), where=wholes > 0)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    shown = [name if len(name) <= _LABEL_CHARS else f"{name[: _LABEL_CHARS - 1]}…" for name in names]
    axes.set_xticks(range(len(shown)), shown, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(len(shown)), shown, fontsize=9)
    axes.set(title="Confusion: share of each expected label's examples", xlabel="predicted", ylabel="expected")
    axes.tick_params(length=0)
    for row, column in zip(*np.nonzero(counts), strict=True):
        ink = "white" if shares[row, column] > 0.55 else _INK
        axes.text(column, row, f"{int(counts[row, column]):,}", ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01, label="share of the label's examples")


def matrix(report: Report) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The labels with most examples, then others together, then none; and (expected, predicted) how many examples."""
    by_support = sorted(report.labels, key=lambda label: -report.labels[label].support)
    kept: Sequence[str] = [label for label in report.labels if label in set(by_support[:_MOST_LABELS])]
    index: dict[str | None, int] = {label: i for i, label in enumerate(kept)}
    names = list(kept)
    if len(by_support) > len(kept):
        names.append(_OTHERS)
    others = len(names) - 1
    has_none = any(None in {one.expected, one.predicted} for one in report.confusion)
    if has_none:
        index[None] = len(names)
        names.append(_NONE)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for one in report.confusion:
        counts[index.get(one.expected, others), index.get(one.predicted, others)] += one.count
    return names, counts
