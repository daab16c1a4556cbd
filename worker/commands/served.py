"""The settings of `xnli-worker serve`: those of `run`, of which it needs neither brokers nor a model's name."""

from __future__ import annotations

from pathlib import Path

from worker import settings as settings_module
from worker.commands.connection import say
from worker.errors import SettingsError
from worker.settings import Settings
from worker.settings.serving import OPEN


def served_settings(config: Path | None) -> Settings:
    """The settings in force.

    Raises:
        SettingsError: they are wrong, or would serve strangers.
    """
    presets = {"kafka": {"bootstrap_servers": "none"}, "model": {"name": "demo"}}
    loaded = settings_module.load(config, defaults=presets)
    if not any("name" in source.tables.get("model", {}) for source in settings_module.given(config)):
        say("model.name is not set: the demo's small checkpoint answers")
    if not loaded.http.is_guarded:
        raise SettingsError(f"serve with http.host = {loaded.http.host!r}: {OPEN}")
    return loaded
