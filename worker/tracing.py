"""Traces, where OpenTelemetry's own variables ask for them: its packages are imported then, and not before."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from worker import __version__
from worker.errors import SettingsError
from worker.settings import Settings
from worker.settings import traces as settings_of_traces

if TYPE_CHECKING:
    from worker.telemetry.traces import Traces


def open_traces(settings: Settings, instance: str) -> Traces | None:
    """Spans, where OpenTelemetry's variables ask for them; else nothing of it is imported.

    Raises:
        SettingsError: they ask, and the packages are not there.
    """
    if (wanted := settings_of_traces()) is None:
        return None
    try:
        from worker.telemetry import traces  # noqa: PLC0415

        to = traces.exporter(wanted.protocol)
    except ImportError as error:
        raise SettingsError(
            f"OpenTelemetry's variables ask for traces, and its packages are not there ({error}): "
            "pip install 'xnli-worker[otel]', or set OTEL_SDK_DISABLED=true"
        ) from None
    who = {"service.name": "xnli-worker", "service.version": __version__, "service.instance.id": instance}
    most_links = None if wanted.limits_links else settings.batch.max_messages
    source = traces.provider(to, who, most_links)
    return traces.Traces(source, settings.kafka.group_id, settings.topics.output, time.monotonic, time.time)
