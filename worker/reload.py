"""Swap the model without a stop: another checkpoint is loaded beside the one that serves, and takes its place.

The main thread asks for it and tells of it. A thread of its own loads, tests and warms the newcomer. The inference
thread exchanges one reference between two batches (`worker.pipeline.served_model`). The Kafka thread goes on polling.

Where memory does not hold two models, the newcomer is loaded after the other has left, and batches wait meanwhile. If
it fails then, the former one is loaded again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from worker import __version__
from worker.errors import CheckpointError, FatalError, SettingsError, Stalled
from worker.http.health import Health
from worker.inference import checkpoint_files, source
from worker.inference.checkpoint_watch import POLL_S, CheckpointWatch
from worker.inference.stage import Tell
from worker.learn import calibration_file
from worker.messages import ModelIdentity
from worker.pipeline.served_model import Model, ServedModel
from worker.rules.calibration import NONE, Calibrations
from worker.settings import Settings
from worker.start import Begun
from worker.telemetry.metrics import Metrics, Swap

if TYPE_CHECKING:
    import torch

    from worker.inference.compatibility import Facts
    from worker.inference.engine import Engine

log = structlog.get_logger("worker")

# The loader's threads get a tenth of the CPU time that the others get, where there is too little for all: see nice(1).
_NICENESS: Final = 10
# Loading takes some more than the weights: the layout that a forward gives them, and rows of the self-test.
_HEADROOM: Final = 1.25
_DOWNLOAD_ATTEMPTS: Final = 5


class Load(Protocol):
    """Loads the checkpoint of the settings: `worker.app.load_engine`."""

    def __call__(
        self,
        settings: Settings,
        wait: Callable[[float], None],
        tell: Tell,
        *,
        progress: bool | None,
        known_as: ModelIdentity | None = None,
        is_alone: bool = True,
    ) -> Engine:
        """The model, tested and warm. Raises CheckpointError."""


@dataclass(frozen=True, slots=True)
class _Following:
    """What was offered, and in which directory it lies, unless a hub's cache holds it by its revision."""

    facts: Facts
    directory: Path | None
    changes: dict[str, str]


class Reload:
    """Looks whether another model is wanted, and sees it through. Main thread only.

    Args:
        settings: Which checkpoint, and when it is loaded anew.
        load: Loads it.
        metrics: Where swaps are counted.
        health: Where a swap that failed is told.
        asked: True once for each time that somebody asks for it: SIGHUP.
        free_bytes: How much memory is left on a device, `worker.inference.free_memory.free_bytes`.

    Raises:
        CheckpointError: a checkpoint of a hub is to be watched.
    """

    def __init__(
        self,
        settings: Settings,
        load: Load,
        metrics: Metrics,
        health: Health,
        asked: Callable[[], bool],
        free_bytes: Callable[[torch.device], int | None] | None = None,
    ) -> None:
        self._settings = settings
        self._load = load
        self._metrics = metrics
        self._health = health
        self._asked = asked
        self._free_bytes = free_bytes
        name = settings.model.name
        directory = source.local(name)
        # Before the first load, so that no change is missed meanwhile.
        self._watch = CheckpointWatch(name) if settings.model.reload == "watch" else None
        if self._watch is not None and directory is None:
            raise CheckpointError(
                f'model.reload = "watch" needs a directory, and model.name = "{name}" is none here: use "signal" for a '
                "checkpoint of a hub"
            )
        self._directory = None if directory is None else directory.resolve()
        self._changed = threading.Event()
        self._is_wanted = False
        self._served: ServedModel | None = None
        self._serving: Facts | None = None
        self._loading: Begun[_Following | None] | None = None
        self._began_s = 0.0
        self._has_stalled = False

    def serve(self, model: Model, calibrations: Calibrations = NONE) -> ServedModel:
        """Let this model serve first, with the calibrations of its revision. Only an `Engine` can be swapped."""
        from worker.inference.compatibility import facts_of  # noqa: PLC0415 (imports torch, as below)
        from worker.inference.engine import Engine  # noqa: PLC0415

        if not isinstance(model, Engine):
            raise TypeError(f"{type(model).__name__} is no engine with a checkpoint: model.reload must be off")
        self._serving = facts_of(model.checkpoint)
        self._served = ServedModel(model, calibrations)
        if self._watch is not None:
            threading.Thread(target=self._look, args=(self._watch,), name="checkpoint-watch", daemon=True).start()
        return self._served

    def _look(self, watch: CheckpointWatch) -> None:
        """On a thread of its own: a disk that hangs holds up nobody else."""
        while True:
            time.sleep(POLL_S)
            if watch.look(time.monotonic()):
                self._changed.set()

    # The main thread's side -------------------------------------------------------------------------------------------

    def step(self, may_begin: Callable[[], bool] = lambda: True) -> None:
        """Begin or go on. ``may_begin``: asked whether no record is looked at to which a death would be laid.

        Raises:
            FatalError: no model can serve any more.
        """
        if self._loading is not None:
            self._go_on(self._loading)
        elif self._is_asked(may_begin) and self._served is not None and self._serving is not None:
            swap = _Swap(self._settings, self._load, self._served, self._serving, self._directory, self._free_bytes)
            self._began_s, self._has_stalled = time.monotonic(), False
            self._loading = Begun(swap.run, time.monotonic, "reloading")

    def _is_asked(self, may_begin: Callable[[], bool]) -> bool:
        self._is_wanted |= self._asked()
        if not (self._is_wanted or self._changed.is_set()) or not may_begin():
            return False
        log.info("model_reload", why="SIGHUP" if self._is_wanted else "changed", serving=self._identity.revision)
        self._is_wanted = False
        self._changed.clear()
        return True

    def _go_on(self, loading: Begun[_Following | None]) -> None:
        if not loading.is_done:
            try:
                loading.check()
            except Stalled as stalled:  # its thread cannot be ended; should it come to an end, what it says counts
                if not self._has_stalled:
                    self._has_stalled = True
                    self._failed(stalled)
            return
        error = loading.future.exception()
        if isinstance(error, FatalError):
            raise error
        if error is not None:
            self._loading = None
            self._failed(error)
            return
        following = loading.future.result()
        if following is None:
            self._loading = None
            self._metrics.swapped(Swap.UNCHANGED)
            self._health.swap_failed("")
            log.info("model_unchanged", revision=self._identity.revision)
        elif self._is_exchanged(following):
            self._loading = None
            self._done(following)

    @property
    def _identity(self) -> ModelIdentity:
        if self._serving is None:
            raise TypeError("nothing serves yet")
        return self._serving.identity

    def _is_exchanged(self, following: _Following) -> bool:
        """Whether the inference thread works by it. What has left is let go of, and its memory with it."""
        if self._served is None or self._served.identity != following.facts.identity:
            return False
        while self._served.left() is not None:
            pass
        return True

    def _done(self, following: _Following) -> None:
        former, facts = self._identity.revision, following.facts
        self._serving, self._directory = facts, following.directory
        self._metrics.swapped(Swap.SWAPPED)
        self._metrics.identify(
            version=__version__,
            model=facts.identity.name,
            revision=facts.identity.revision,
            device=str(facts.device),
            precision=facts.precision,
        )
        self._health.swap_failed("")
        seconds = round(time.monotonic() - self._began_s, 1)
        log.info("model_swapped", former=former, revision=facts.identity.revision, seconds=seconds, **following.changes)

    def _failed(self, error: BaseException) -> None:
        self._metrics.swapped(Swap.FAILED)
        serving = self._identity
        why = str(error) if isinstance(error, CheckpointError | Stalled) else f"{type(error).__name__}: {error}"
        self._health.swap_failed(f"{serving.name} at {serving.revision} goes on, because another failed: {why}")
        unexpected = None if isinstance(error, CheckpointError | Stalled) else error
        log.error("model_swap_failed", error=why, serving=serving.revision, exc_info=unexpected)


class _Swap:
    """One checkpoint on its way to serve. Loader thread only."""

    def __init__(
        self,
        settings: Settings,
        load: Load,
        served: ServedModel,
        serving: Facts,
        directory: Path | None,
        free_bytes: Callable[[torch.device], int | None] | None,
    ) -> None:
        self._settings = settings
        self._load = load
        self._served = served
        self._serving = serving
        self._directory = directory  # of the one that serves; None: a hub's
        self._free_bytes = free_bytes

    def run(self, tell: Tell) -> _Following | None:
        """Find, load, test and offer the checkpoint. None: it is the one that serves.

        Raises:
            CheckpointError: it cannot take the other's place; that one goes on.
            FatalError: neither can serve.
        """
        _give_way()
        model = self._settings.model
        found = source.find(
            model.name, model.revision, progress=False, attempts=_DOWNLOAD_ATTEMPTS, sleep=time.sleep, tell=tell
        )
        if found.identity == self._serving.identity:
            return None
        calibrations = self._calibrations(found.identity)
        if self._holds_two(source.size_bytes(found.directory)):
            engine = self._loaded(found, tell, is_alone=False)
        else:
            engine = self._loaded_after(found, tell)
        from worker.inference.compatibility import changes, facts_of  # noqa: PLC0415 (imports torch, as below)

        facts = facts_of(engine.checkpoint)
        self._served.offer(engine, calibrations)
        directory = None if source.local(model.name) is None else found.directory.resolve()
        return _Following(facts, directory, changes(self._serving, facts))

    def _calibrations(self, following: ModelIdentity) -> Calibrations:
        """What ``model.calibration`` holds for the newcomer, read again: with what it calls the same as ever."""
        named, former = self._settings.model.calibration, self._served.calibrations
        try:
            offered = calibration_file.offered(named, following)
        except SettingsError as error:
            raise CheckpointError(
                f"{following.name} is now at {following.revision}, and has no calibration: {error}. A folder may hold "
                "the calibrations of several revisions: put that of the newcomer there, then ask again"
            ) from None
        if lost := sorted(former.by_name.keys() - offered.by_name.keys()):
            raise CheckpointError(
                f"model.calibration = {named} no longer holds {lost[0]!r}, which {self._serving.identity.revision} "
                f"has, and label sets may name it: fit it on {following.revision} too (xnli-worker calibrate), or "
                "restart the worker without it"
            )
        if former.otherwise is not None and offered.otherwise is None:
            raise CheckpointError(
                f"model.calibration = {named} holds {', '.join(map(repr, sorted(offered.by_name)))} now, and none for "
                f"requests that name none, which have {former.otherwise.name!r} so far: call one of them "
                f"{calibration_file.OTHERWISE!r}, or keep one alone"
            )
        return offered

    def _holds_two(self, size_bytes: int) -> bool:
        from worker.inference.free_memory import free_bytes  # noqa: PLC0415

        needed = _HEADROOM * max(size_bytes, self._serving.weights_bytes)
        free = (self._free_bytes or free_bytes)(self._serving.device)
        if free is None or free >= needed:
            return True
        log.warning(
            "model_swapped_in_turn", why="memory does not hold two models", needed_bytes=int(needed), free_bytes=free
        )
        return False

    def _loaded(self, found: source.Source, tell: Tell, *, is_alone: bool) -> Engine:
        """The checkpoint at work, of the files that were there from beginning to end."""
        from worker.inference.compatibility import facts_of, require_compatible  # noqa: PLC0415

        before = checkpoint_files.fingerprint(found.directory)
        engine = self._load(self._settings, time.sleep, tell, progress=False, is_alone=is_alone)
        if engine.identity != found.identity or checkpoint_files.fingerprint(found.directory) != before:
            raise CheckpointError(
                f"the files of {found.identity.name} changed while they were read: write a checkpoint to a directory "
                "of its own, and put that or a link to it in place at once, by a rename"
            )
        require_compatible(self._serving, facts_of(engine.checkpoint))
        return engine

    def _loaded_after(self, found: source.Source, tell: Tell) -> Engine:
        """As `_loaded`, once the other has given up its memory."""
        checkpoint_files.require_readable_weights(found.directory, found.identity.name)
        self._served.offer(None)
        # For as long as it takes: its results may wait for a broker that is away, and a hang is noticed elsewhere.
        while self._served.left(POLL_S) is None:
            tell("waiting for the batch under way", 10 * POLL_S)
        try:
            return self._loaded(found, tell, is_alone=True)
        except BaseException as failed:  # a panic of tokenizers' is no Exception
            self._bring_back(failed, tell)
            raise

    def _bring_back(self, failed: BaseException, tell: Tell) -> None:
        """Let the former checkpoint serve again, from where it lay."""
        log.error("model_brought_back", error=str(failed), revision=self._serving.identity.revision)
        model, own = self._settings.model, self._serving.identity
        name = model.name if self._directory is None else str(self._directory)
        former = model.model_copy(update={"name": name, "revision": own.revision})
        settings = self._settings.model_copy(update={"model": former})
        try:
            engine = self._load(settings, time.sleep, tell, progress=False, known_as=own)
        except Exception as error:  # noqa: BLE001 (whatever keeps it from loading, no model is left)
            raise FatalError(f"{failed}; nor can the former model serve again: {error}") from failed
        self._served.offer(engine, self._served.calibrations)


def _give_way() -> None:
    """Let this thread, and those that it begins, take less of the CPU. On Linux a priority is a thread's own."""
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
