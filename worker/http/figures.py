"""What the worker is doing now, in numbers: tiles with a line of the last minutes, and cards with tables, as HTML."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

from worker.http.drawing import bar, spark, text
from worker.http.health import Health
from worker.http.problem import STATUSES
from worker.http.readings import Reading, Readings, quantile, rate

_MOST_PARTITIONS: Final = 50
_STATUS_NAMES: Final = {"200": "answered", "499": "client went away"} | {
    str(status): title[0].lower() + title[1:] for status, title in STATUSES.items()
}


class Figures:
    """Draws them. HTTP thread only.

    Args:
        readings: The worker's metrics, now and some minutes back.
        health: Its state.
        has_stream: Whether it consumes.
        is_asked: Whether it answers requests over HTTP.
    """

    def __init__(self, readings: Readings, health: Health, *, has_stream: bool, is_asked: bool) -> None:
        self._readings = readings
        self._health = health
        self._has_stream = has_stream
        self._is_asked = is_asked

    def cards(self, now: Reading) -> Iterator[str]:
        """Partitions, batches, dead letters, requests over HTTP: as far as there are any."""
        if self._has_stream:
            yield self._partitions(now)
            yield self._batches(now)
            yield self._dead_letters(now)
        if self._is_asked:
            yield self._http(now)

    def tiles(self, now: Reading) -> Iterator[str]:
        """The figures that matter most."""
        readings, before = self._readings, self._readings.recent(now)
        if self._has_stream:
            yield _tile(
                "messages a second",
                _number(rate(before, now, "records_published_total")),
                f"{_count(now.total('records_published_total'))} answered",
                readings.rates("records_published_total", now),
            )
        yield _tile(
            "pairs a second",
            _number(rate(before, now, "pairs_total")),
            f"{_count(now.total('pairs_computed_total'))} computed",
            readings.rates("pairs_total", now),
        )
        if self._has_stream:
            yield _tile(
                "lag",
                _count(now.total("consumer_lag")),
                f"{_count(now.total('assigned_partitions'))} partitions",
                readings.values("consumer_lag", now),
            )
            yield _latency("latency, end to end", "end_to_end_seconds", readings, before, now)
        if self._is_asked:
            yield _latency("latency over HTTP", "http_seconds", readings, before, now)
        padding = readings.padding(now)
        yield _tile("padding", f"{100 * (padding[-1] if padding else 0.0):.1f}<small> %</small>", "of tokens", padding)

    def _partitions(self, now: Reading) -> str:
        lag = sorted(now.samples.get("consumer_lag", {}).items())
        stalled = {labels for labels, value in now.samples.get("stalled_partitions", {}).items() if value}
        rows = []
        most = max((value for _, value in lag), default=0.0)
        for labels, value in lag[:_MOST_PARTITIONS]:
            named = dict(labels)
            place = f"{text(named.get('topic', ''))}-{text(named.get('partition', ''))}"
            note = " (cannot be read)" if labels in stalled else ""
            rows.append(_row(f"{place}{note}", value / most if most else 0.0, _count(value)))
        more = f'<p class="more">and {len(lag) - _MOST_PARTITIONS} more</p>' if len(lag) > _MOST_PARTITIONS else ""
        return _card("Partitions, and their lag", _table(("partition", "lag"), rows) + more, rows, "None is assigned.")

    def _batches(self, now: Reading) -> str:
        closed = {trigger: count for trigger, count in now.by("batches_total", "trigger").items() if count}
        total = sum(closed.values())
        rows = [
            _row(text(trigger), count / total, f"{100 * count / total:.0f} %")
            for trigger, count in sorted(closed.items(), key=lambda found: -found[1])
        ]
        messages, batches = now.total("batch_messages_sum"), now.total("batch_messages_count")
        fill = f'<p class="more">{messages / batches:.1f} messages in a batch</p>' if batches else ""
        return _card("Batches, by what closed them", _table(("closed by", "share"), rows) + fill, rows, "None yet.")

    def _dead_letters(self, now: Reading) -> str:
        counted = {reason: count for reason, count in now.by("records_dead_lettered_total", "reason").items() if count}
        total = sum(counted.values())
        rows = [
            _row(text(reason), count / total, _count(count))
            for reason, count in sorted(counted.items(), key=lambda found: -found[1])
        ]
        latest = "".join(
            f"<tr><th scope='row'><code>{text(found.topic)} {found.partition}:{found.offset}</code></th>"
            f"<td>{text(found.reason)}</td><td class='number'>{_ago(time.time() - found.wall_s)}</td></tr>"
            for found in reversed(self._health.latest_dead_letters.copy())
        )
        below = (
            "<div class='scroll'><table><thead><tr><th scope='col'>latest</th><th scope='col'>reason</th>"
            f"<th scope='col' class='number'>ago</th></tr></thead><tbody>{latest}</tbody></table></div>"
            if latest
            else ""
        )
        return _card("Dead letters, by reason", _table(("reason", "count"), rows) + below, rows, "None.")

    def _http(self, now: Reading) -> str:
        counted = now.by("http_requests_total", "status")
        total = sum(counted.values())
        rows = [
            _row(f"{text(status)} {_STATUS_NAMES.get(status, '')}", count / total, _count(count))
            for status, count in sorted(counted.items())
        ]
        return _card("Requests over HTTP, by status", _table(("status", "count"), rows), rows, "None yet.")


def _tile(name: str, value: str, note: str, history: Sequence[float]) -> str:
    return (
        f'<li class="tile"><span class="name">{name}</span><span class="value">{value}</span>'
        f'<span class="note">{note}</span>{spark(history)}</li>'
    )


def _latency(name: str, metric: str, readings: Readings, before: Reading, now: Reading) -> str:
    half, most = (quantile(before, now, metric, wanted) for wanted in (0.5, 0.99))
    note = f"p99 {_seconds(most)}" if most else "nothing lately"
    return _tile(name, _seconds(half) if half else "–", note, readings.quantiles(metric, 0.5, now))


def _card(title: str, content: str, rows: Sequence[str], empty: str) -> str:
    shown = content if rows else f'<p class="empty">{empty}</p>'
    return f'<section class="card"><h2>{title}</h2>{shown}</section>'


def _table(heads: tuple[str, str], rows: Sequence[str]) -> str:
    first, last = heads
    return (
        f"<div class='scroll'><table><thead><tr><th scope='col'>{first}</th><td class='bar'></td>"
        f"<th scope='col' class='number'>{last}</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(name: str, part: float, value: str) -> str:
    return f"<tr><th scope='row'>{name}</th><td class='bar'>{bar(part)}</td><td class='number'>{value}</td></tr>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _count(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= 10 * size:
            return f"{value / size:,.1f}<small> {unit}</small>"
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:.1f}<small> s</small>" if value >= 1 else f"{1000 * value:.0f}<small> ms</small>"


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
