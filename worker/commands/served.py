"""The settings of `xnli-worker serve`: those of `run`, of which it needs neither brokers nor a model's name."""

from __future__ import annotations

from pathlib import Path

from worker import settings as settings_module
from worker.commands import label_set_files
from worker.commands.connection import say
from worker.errors import SettingsError
from worker.label_sets.record import RefusedError
from worker.label_sets.stored_sets import ReadySets, StoredSets
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


def served_label_sets(files: list[Path], settings: Settings) -> ReadySets | None:
    """The label sets that requests may name: those of files. None without files.

    Raises:
        SettingsError: a file cannot be read, or holds no set; it says where and why.
    """
    if settings.topics.label_sets is not None:
        say("topics.label_sets is not read: serve needs no Kafka, and takes label sets from files (--label-sets FILE)")
    if not files:
        return None
    stored = StoredSets(settings.label_sets.max_bytes, settings.model.hypothesis_template)
    for given in label_set_files.read(files, None):
        try:
            stored.put_file(given.name, given.value)
        except RefusedError as refused:
            raise SettingsError(f"--label-sets: {given.name}: {refused}") from None
    return stored.view()
