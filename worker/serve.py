"""The worker without Kafka: a model behind HTTP. `worker.app` is the one with."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client import CollectorRegistry

from worker import process
from worker.app import DRAIN_TIMEOUT_S, calibration_files, load_engine, ready_engine, retry_policy
from worker.endpoint import Endpoint
from worker.errors import Stalled
from worker.http.health import Health
from worker.label_sets.stored_sets import ReadySets
from worker.learn import calibration_file
from worker.other_models import open_reload
from worker.pipeline.infer import InferenceThread
from worker.pipeline.served_model import Model
from worker.rules.calibration import NONE
from worker.settings import Settings
from worker.start import Start, Stopped
from worker.telemetry.metrics import Metrics
from worker.tracing import open_call_traces

if TYPE_CHECKING:
    from worker.telemetry.call_traces import CallTraces

log = structlog.get_logger("worker")

_POLL_S: Final = 0.05


class Server:
    """One server. Call `run`; it ends when ``stop_requested`` says so, or with an error.

    Args:
        settings: Everything it goes by; of ``kafka`` and ``topics`` nothing.
        engine: In place of the checkpoint of the settings, for tests.
        label_sets: Those that requests may name.
        reload_asked: True once for each time that somebody asks for the checkpoint to be loaded anew.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engine: Model | None = None,
        label_sets: ReadySets | None = None,
        reload_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        registry = CollectorRegistry()
        self._metrics = Metrics(registry)
        self.health = Health(loop_limit_s=0.0, inference_limit_s=settings.model.timeout_s, has_stream=False)
        self.http = Endpoint(settings, self.health, self._metrics, registry, is_asked=True, has_stream=False)
        self._engine = engine
        self._label_sets = label_sets
        self._reload = open_reload(settings, load_engine, self._metrics, self.health, reload_asked)
        self._inference: InferenceThread | None = None
        self._traces: CallTraces | None = None

    def run(self, stop_requested: Callable[[], bool]) -> bool:
        """Answer until asked to stop, then drain. True if everything in hand was answered.

        Raises:
            FatalError: the process must end.
            SettingsError: the checkpoint cannot serve.
        """
        freed = process.FreedMemory()
        try:
            inference = self._inference = self._start(Start(stop_requested))
            process.collect_rarely()
            while not stop_requested():
                time.sleep(_POLL_S)
                inference.check()
                self.http.check()
                now_s = time.monotonic()
                freed.give_back(now_s)
                if self._reload is not None:
                    self._reload.step()
                verdict = self.health.healthy(now_s)
                if not verdict.ok:
                    raise Stalled("; ".join(verdict.problems))
            self.health.draining()
            self.http.drain()
            drained = self.http.await_drained(DRAIN_TIMEOUT_S)
        except Stopped:
            log.info("stopped", started=False)
            return True
        else:
            log.info("drained" if drained else "drain_timed_out")
            return drained
        finally:
            if self._inference is not None:
                self._inference.stop(timeout_s=1.0)
            self.http.close()
            if self._traces is not None:
                self._traces.close()

    def _start(self, start: Start) -> InferenceThread:
        self._traces = open_call_traces(self._settings, f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}")
        self.http.trace(self._traces)
        files = calibration_files(self._settings)  # before minutes of loading
        engine = ready_engine(self._settings, self._engine, start, self._metrics)
        calibrations = calibration_file.of_model(files, engine.identity)
        if self._reload is not None:
            engine, calibrations = self._reload.serve(engine, calibrations), NONE
        inference = self.http.compute(engine, retry_policy(self._settings), calibrations, label_sets=self._label_sets)
        self.health.model_loaded()
        log.info("started", http_port=self.http.port, label_sets=len(list(self._label_sets or ())))
        return inference
