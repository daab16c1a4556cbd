"""What `evaluate` and `calibrate` share: labelled examples become requests, and the engine scores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from worker import settings as settings_module
from worker.commands import label_set_files
from worker.commands.connection import say
from worker.commands.progress import progress_bar
from worker.commands.request_source import labels_of
from worker.errors import SettingsError
from worker.label_sets.record import RefusedError
from worker.label_sets.stored_sets import StoredSets
from worker.learn import examples, extra, scoring
from worker.learn.examples import Defaults
from worker.learn.scoring import Asked, Scored, Unscored
from worker.messages import Pooling
from worker.rules.calibration import NONE, Calibrations
from worker.screen import plural
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.inference.engine import Engine

_DEMO: Final = "demo"
_NO_BROKER: Final = "none"
_SHOWN: Final = 5  # examples that were not scored


@dataclass(frozen=True, slots=True)
class Given:
    """Where examples lie and what they mean that do not say, as it was typed. One of ``file`` and ``topic`` is set."""

    file: str | None = None
    topic: str | None = None
    config: Path | None = None
    model: str | None = None
    labels: str = ""
    label_set: Path | None = None
    multi_label: bool = False
    template: str | None = None


class Labelled:
    """Examples and the settings they are scored by. Making one reads them; `score` loads the model.

    Args:
        given: What was typed.
        stop_requested: Ends the reading of a topic.

    Raises:
        SettingsError: settings or examples are wrong, or the extra ``learn`` is not installed.
        BrokerAway, TopicMissing, RegistryAway: there is no topic to read from.
    """

    def __init__(self, given: Given, stop_requested: Callable[[], bool]) -> None:
        extra.require("scikit-learn")
        if (given.file is None) == (given.topic is None):
            raise SettingsError("name a file of examples (- is stdin), or a topic by --topic")
        self.settings = _settings(given)
        self._sets = StoredSets(self.settings.label_sets.max_bytes, self.settings.model.hypothesis_template)
        defaults = self._defaults(given)
        if given.topic is None:
            self._examples = examples.read(given.file or "-", defaults)
        else:
            from worker.commands import labelled_topic  # noqa: PLC0415 (Kafka's side is of no concern to a file)

            self._examples = labelled_topic.read(self.settings, given.topic, defaults, stop_requested)
        self._find_sets()
        self.asked = self.requests(NONE)  # what is wrong with examples is told before a model is loaded

    def requests(self, calibrations: Calibrations) -> list[Asked]:
        """The examples as requests. Raises SettingsError."""
        from worker.endpoint import defaults_of, limits_of  # noqa: PLC0415 (imports what HTTP needs)

        defaults = defaults_of(self.settings, Pooling.MEAN, self._sets, calibrations)
        return scoring.asked(self._examples, defaults, limits_of(self.settings))

    def engine(self) -> Engine:
        """The model. Raises CheckpointError."""
        from worker.app import load_engine  # noqa: PLC0415 (imports torch: what was typed wrongly is told before)

        return load_engine(self.settings)

    def score(
        self, engine: Engine, asked: Sequence[Asked], stop_requested: Callable[[], bool]
    ) -> tuple[list[Scored], bool]:
        """The examples' scores, and whether there are of all. A stop leaves those that are done."""
        found: list[Scored] = []
        failed: list[Unscored] = []
        with progress_bar("scoring", "examples", len(asked)) as move_bar:
            for batch in scoring.scored(engine, asked, self.settings.batch.max_tokens):
                found += [one for one in batch if isinstance(one, Scored)]
                failed += [one for one in batch if isinstance(one, Unscored)]
                move_bar(len(batch), len(found) + len(failed))
                if stop_requested():
                    break
        for one in failed[:_SHOWN]:
            say(f"{one.example.place}: not scored: {one.why}")
        if len(failed) > _SHOWN:
            say(f"{plural(len(failed) - _SHOWN, 'more example')} not scored")
        is_whole = len(found) == len(asked)
        if len(found) + len(failed) < len(asked):
            say(f"stopped: {len(found):,} of {plural(len(asked), 'example')} are scored")
        return found, is_whole

    def _defaults(self, given: Given) -> Defaults:
        labels = tuple(labels_of(given.labels))
        if labels and given.label_set is not None:
            raise SettingsError("--labels and --label-set: name the candidates by one of the two")
        name: str | None = None
        if given.label_set is not None:
            sets = label_set_files.read([given.label_set], None, otherwise=given.label_set.stem)
            for one in sets:
                self._put(one.name, one.value, 0, 0)
            name = sets[0].name if len(sets) == 1 else None
        return Defaults(labels, name, given.multi_label, given.template)

    def _find_sets(self) -> None:
        """Sets that examples name and no file has are looked for in the topic of label sets."""
        missing = {one.label_set for one in self._examples if one.label_set is not None} - set(self._sets)
        if not missing or self.settings.topics.label_sets is None:
            return
        if self.settings.kafka.bootstrap_servers == _NO_BROKER:
            return
        from worker.commands import label_set_topic  # noqa: PLC0415 (as above)

        with label_set_topic.opened(self.settings) as topic:
            for stored in topic.read().values():
                if stored.name in missing and stored.record is not None:
                    self._put(stored.name, stored.value, stored.partition, stored.offset)

    def _put(self, name: str, value: bytes, partition: int, offset: int) -> None:
        try:
            self._sets.put(name, value, partition, offset)
        except RefusedError as refused:
            raise SettingsError(f"label set {name}: {refused}") from None


def _settings(given: Given) -> Settings:
    presets: dict[str, dict[str, str]] = {"model": {"name": _DEMO}}
    if given.topic is None:
        presets["kafka"] = {"bootstrap_servers": _NO_BROKER}
    loaded = settings_module.load(given.config, defaults=presets)
    model = loaded.model
    if given.model is not None and given.model != model.name:
        # What the settings say of another model (its revision, its calibrations) is not said of this one.
        others = {"name": given.model, "revision": None, "calibration": None, "labels": None, "max_length": None}
        model = model.model_copy(update=others)
    elif given.model is None and not any(
        "name" in source.tables.get("model", {}) for source in settings_module.given(given.config)
    ):
        say("model.name is not set: the demo's small checkpoint answers")
    return loaded.model_copy(update={"model": model})
