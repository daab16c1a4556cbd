"""Traces, where OpenTelemetry's own variables ask for them: its packages are imported then, and not before."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from worker import __version__
from worker.errors import SettingsError
from worker.settings import Settings
from worker.settings import traces as settings_of_traces

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from worker.telemetry.call_traces import CallTraces
    from worker.telemetry.traces import Traces


def open_traces(settings: Settings, instance: str) -> tuple[Traces, CallTraces] | tuple[None, None]:
    """Spans of the stream and of calls over HTTP, where OpenTelemetry's variables ask for them; the first closes both.

    Raises:
        SettingsError: they ask, and the packages are not there.
    """
    if (source := _source(settings, instance)) is None:
        return None, None
    from worker.telemetry.call_traces import CallTraces  # noqa: PLC0415
    from worker.telemetry.traces import Traces  # noqa: PLC0415

    stream = Traces(source, settings.kafka.group_id, settings.topics.output, time.monotonic, time.time)
    return stream, CallTraces(source, time.monotonic, time.time)


def open_call_traces(settings: Settings, instance: str) -> CallTraces | None:
    """Those of calls alone, where there is no stream. Raises as `open_traces`."""
    if (source := _source(settings, instance)) is None:
        return None
    from worker.telemetry.call_traces import CallTraces  # noqa: PLC0415

    return CallTraces(source, time.monotonic, time.time)


def _source(settings: Settings, instance: str) -> TracerProvider | None:
    """What makes spans; None, and nothing of OpenTelemetry is imported, where its variables do not ask for them."""
    if (wanted := settings_of_traces()) is None:
        return None
    try:
        from worker.telemetry import spans  # noqa: PLC0415

        to = spans.exporter(wanted.protocol)
    except ImportError as error:
        raise SettingsError(
            f"OpenTelemetry's variables ask for traces, and its packages are not there ({error}): "
            "pip install 'xnli-worker[otel]', or set OTEL_SDK_DISABLED=true"
        ) from None
    who = {"service.name": "xnli-worker", "service.version": __version__, "service.instance.id": instance}
    # A batch is linked to its messages, and to the calls in its first forwards.
    most_links = None if wanted.limits_links else settings.batch.max_messages + settings.http.max_waiting
    return spans.provider(to, who, most_links)
