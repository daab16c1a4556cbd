"""Models beside the one that serves: a second one that is compared with it, and one that is to take its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from worker import process
from worker.http.health import Health
from worker.settings import Settings
from worker.start import Start
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from worker.inference.engine import Engine
    from worker.reload import Load, Reload

log = structlog.get_logger("worker")


def load_shadow(settings: Settings, load: Load, start: Start) -> Engine | None:
    """The second checkpoint, if there is one. Each of its forwards has one row, so that it gives way soon.

    Raises:
        CheckpointError: it cannot serve, and why.
    """
    name = settings.model.shadow
    if name is None:
        return None
    model = settings.model.model_copy(update={"name": name, "revision": None})
    batch = settings.batch.model_copy(update={"max_tokens": 1})
    cache = settings.cache.model_copy(update={"max_pairs": 0})
    second = settings.model_copy(update={"model": model, "batch": batch, "cache": cache})
    engine = start.run(lambda tell: load(second, start.wait, tell, progress=False))
    log.info("shadow_loaded", model=name, revision=engine.identity.revision)
    return engine


def open_reload(
    settings: Settings, load: Load, metrics: Metrics, health: Health, asked: Callable[[], bool]
) -> Reload | None:
    """What swaps the model; None where the settings want none, which costs nothing.

    Raises:
        CheckpointError: what is to be watched is no directory.
    """
    if settings.model.reload == "off":
        return None
    process.share_arenas()
    from worker.reload import Reload  # noqa: PLC0415 (imports the hub's client)

    return Reload(settings, load, metrics, health, asked)
