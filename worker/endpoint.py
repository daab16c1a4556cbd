"""The worker's HTTP side, made of settings: up from the beginning, asked for answers once the model is loaded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry

from worker import language_detection
from worker.avro.request import AUTO, Defaults, Limits
from worker.http.asked import Rules
from worker.http.bearer import Bearer
from worker.http.body import Bodies
from worker.http.calls import CallQueue
from worker.http.health import Health
from worker.http.inference import Inference, Service
from worker.http.page import Facts, Page, SettingShown
from worker.http.readings import Readings
from worker.http.server import HttpServer
from worker.http.site import Site, Watched
from worker.label_sets.stored_sets import ReadySets
from worker.messages import Pooling
from worker.pipeline.batch import BATCHES_IN_HAND
from worker.pipeline.infer import InferenceThread
from worker.pipeline.served_model import Model, ServedModel
from worker.pipeline.shadow import Shadow
from worker.rules.calibration import NONE, Calibrations
from worker.rules.device_share import DeviceShare
from worker.rules.label_set import LabelSets
from worker.rules.retry import RetryPolicy
from worker.settings import Settings
from worker.settings.in_force import in_force
from worker.telemetry.http_metrics import HttpMetrics
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from worker.telemetry.call_traces import CallTraces

# Of the open connections, those that may have a request for inference in hand. The rest is for probes, and for
# newcomers whose request is not here yet.
_ASKING: Final = 0.75
_POLL_S: Final = 0.01


def limits_of(settings: Settings) -> Limits:
    """The bounds on one request."""
    limits = settings.limits
    return Limits(limits.max_text_chars, limits.max_labels, limits.max_label_chars, limits.max_message_bytes)


def defaults_of(
    settings: Settings, pooling: Pooling, label_sets: LabelSets | None, calibrations: Calibrations = NONE
) -> Defaults:
    """What a request means that does not say."""
    model = settings.model
    return Defaults(
        model.hypothesis_template,
        model.long_text,
        pooling,
        model.normalize,
        label_sets,
        language_detection.detector(is_needed=model.detects_language),
        AUTO if model.detects_language else None,
        calibrations,
    )


def _shown(settings: Settings) -> list[SettingShown]:
    return [
        SettingShown(found.setting if found.key is None else f"{found.setting}.{found.key}", found.value, found.source)
        for found in in_force(settings, None)
    ]


class Endpoint:
    """The HTTP server and what it answers, from construction until `close`. Main thread only.

    Args:
        settings: Everything it goes by.
        health: The worker's state.
        metrics: Where what calls cost is counted.
        registry: The metrics to expose.
        is_asked: Whether requests for inference are answered.
        has_stream: Whether it consumes as well.

    Raises:
        SettingsError: the address cannot be listened on.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        metrics: Metrics,
        registry: CollectorRegistry,
        *,
        is_asked: bool,
        has_stream: bool = True,
    ) -> None:
        http = settings.http
        self._settings = settings
        self._health = health
        self._metrics = metrics
        self._inference = Inference(
            is_on=is_asked,
            bodies=Bodies(http.max_body_bytes, http.receive_timeout_s),
            most=int(_ASKING * http.max_connections),
            timeout_s=http.timeout_s,
        )
        bearer = Bearer([token.get_secret_value() for token in http.tokens], is_guarded=http.is_guarded)
        readings = Readings(registry, time.monotonic)
        facts = Facts(settings.delivery.guarantee if has_stream else "", _shown(settings), is_asked)
        page = Page(facts, health, readings, time.monotonic, lambda: self._inference.label_sets)
        watched = Watched(health, registry, HttpMetrics(registry), time.monotonic)
        self._site = Site(watched, self._inference, bearer, page)
        self._server = HttpServer(
            self._site.app,
            http.host,
            http.port,
            most_connections=http.max_connections,
            timeout_s=http.receive_timeout_s,
            beside=readings.go_on,
        )
        self.port = self._server.port
        self.calls: CallQueue | None = None
        if is_asked:
            most_tokens = BATCHES_IN_HAND * settings.batch.max_tokens
            self.calls = CallQueue(self._server.loop, most_calls=http.max_waiting, most_tokens=most_tokens)

    def compute(
        self,
        engine: Model,
        policy: RetryPolicy,
        calibrations: Calibrations = NONE,
        shadow: Model | None = None,
        label_sets: ReadySets | None = None,
    ) -> InferenceThread:
        """The inference thread, begun: requests are answered from now on, whatever else is away.

        ``shadow`` computes a share of the stream's requests too; ``label_sets`` are those known from the beginning.
        """
        inference = InferenceThread(
            engine,
            policy,
            time.monotonic,
            self._health.inference_beat,
            self._health.inference_idle,
            self.calls,
            DeviceShare(self._settings.http.share, self._settings.batch.max_tokens),
            self._metrics.called,
            engine if isinstance(engine, ServedModel) else None,
            None if shadow is None else Shadow(shadow, self._settings.model.shadow_share, self._metrics.shadowed),
        )
        inference.start()
        self.open(engine, label_sets, calibrations)
        return inference

    def open(self, engine: Model, label_sets: ReadySets | None, calibrations: Calibrations = NONE) -> None:
        """Answer requests by these label sets from now on. They are looked up on a thread of this side."""
        if self.calls is None:
            return
        defaults = defaults_of(self._settings, engine.pooling, label_sets, calibrations)
        limits, most = limits_of(self._settings), self._settings.http.max_items
        rules = Rules(defaults, limits, engine.encode, engine.identity, most)
        self._inference.open(Service(self.calls, rules, label_sets or ()))

    def trace(self, traces: CallTraces | None) -> None:
        """Make a span of each request from now on, if there are to be any."""
        self._site.traces = traces

    def check(self) -> None:
        """Raise what ended the server's thread, if anything did."""
        self._server.check()

    def drain(self) -> None:
        """Answer what is in hand, and nothing else from now on. Returns at once."""
        self._inference.drain()

    def await_drained(self, timeout_s: float) -> bool:
        """Wait until what was in hand is answered. False if time ran out."""
        deadline_s = time.monotonic() + timeout_s
        while self._inference.in_hand and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        return not self._inference.in_hand

    def close(self) -> None:
        """Answer what is still in hand with 503, close connections and free the port."""
        self._inference.drain()
        self._server.close(self._inference.close)
        self._inference.end()
