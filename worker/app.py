"""Wiring and life cycle: settings become parts; start -> run -> drain -> close.

Two threads and two bounded queues. The Kafka thread (this one) owns consumer, producer, batcher, ledger and retries;
the inference thread owns the model and the device. While batch N is computed, batch N+1 is decoded and tokenised and
batch N-1 is produced.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from worker import __version__, language_detection, process
from worker.avro.codec import Codecs, open_codecs
from worker.endpoint import Endpoint, defaults_of, limits_of
from worker.errors import BrokerAway, FatalError, RegistryAway, Stalled
from worker.http.health import Health
from worker.http.readiness_log import ReadinessLog
from worker.inference.stage import Tell, tell_nobody
from worker.kafka import client_config, known_limits, reach
from worker.kafka.client_errors import ErrorLog
from worker.kafka.consumer import Consumer
from worker.kafka.embedded import require_transactions
from worker.kafka.publisher import Publisher
from worker.kafka.publishers import open_publisher
from worker.kafka.topic_ids import TopicIds
from worker.label_sets.topic import FollowedSets
from worker.learn import calibration_file
from worker.learn.calibration_file import CalibrationFile
from worker.messages import ModelIdentity, Pooling
from worker.other_models import load_shadow, open_reload
from worker.pipeline.admit import RequestReader
from worker.pipeline.batch import BatchPolicy
from worker.pipeline.infer import InferenceThread
from worker.pipeline.loop import Loop
from worker.pipeline.resolve import Policy, ResultWriter
from worker.pipeline.served_model import Model
from worker.pipeline.wiring import open_loop
from worker.rules import names, trouble
from worker.rules.calibration import NONE, Calibrations
from worker.rules.dead_letter import DeadLetterSource
from worker.rules.dead_letter_limit import DeadLetterLimits
from worker.rules.retry import RetryPolicy
from worker.settings import Settings
from worker.start import Start, Stopped
from worker.telemetry import certificates
from worker.telemetry.certificates import CertificateWatch, OwnCertificate
from worker.telemetry.metrics import Metrics
from worker.tracing import open_traces

if TYPE_CHECKING:
    from worker.inference.engine import Engine
    from worker.telemetry.traces import Traces

log = structlog.get_logger("worker")

# A supervisor that sends SIGTERM waits 30 s as a rule (Kubernetes' default); closing takes up to five more than this.
DRAIN_TIMEOUT_S: Final = 20.0
START_TIMEOUT_S: Final = 5.0
# From a disk that is cold they take half a minute.
IMPORT_LIMIT_S: Final = 300.0
# A step holds at most a publish and a revoke, each with its own deadline.
LOOP_LIMIT_S: Final = 60.0
REACH_TIMEOUT_S: Final = 2.0


def load_engine(
    settings: Settings,
    wait: Callable[[float], None] = time.sleep,
    tell: Tell = tell_nobody,
    *,
    progress: bool | None = None,
    known_as: ModelIdentity | None = None,
    is_alone: bool = True,
) -> Engine:
    """The checkpoint, loaded, tested and warm.

    Args:
        settings: Which, where and how.
        wait: Passes the time between attempts to download it.
        tell: Is told what goes on.
        progress: Show bars while it is downloaded; None: on a terminal.
        known_as: What results call it, in place of what is found.
        is_alone: No other model lies on the device that will leave it: what fits now is all that ever will.

    Raises:
        CheckpointError: it cannot serve, and why.
    """
    # Here, because torch takes seconds to import and not every user of this module loads a model.
    tell("importing torch and transformers", IMPORT_LIMIT_S)
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    from worker.inference import loading as checkpoints  # noqa: PLC0415
    from worker.inference.engine import Engine  # noqa: PLC0415

    # transformers logs through a handler of its own; through ours its lines are JSON like all others.
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    model = settings.model
    checkpoint = checkpoints.load(
        model.name,
        revision=model.revision,
        device=model.device,
        precision=model.precision,
        max_length=model.max_length,
        labels=model.labels,
        default_language=model.fixed_language,
        pooling=None if model.pooling == "auto" else Pooling(model.pooling),
        self_test=model.self_test,
        progress=progress,
        sleep=wait,
        tell=tell,
        threads=model.threads,
    )
    if known_as is not None:
        checkpoint = replace(checkpoint, identity=known_as)
    tell("warming up", model.timeout_s)
    engine = Engine(
        checkpoint,
        max_tokens=settings.batch.max_tokens,
        max_request_tokens=settings.limits.max_tokens,
        cache_pairs=settings.cache.max_pairs,
    )
    engine.warm_up(is_alone=is_alone)
    return engine


def ready_engine(settings: Settings, engine: Model | None, start: Start, metrics: Metrics) -> Model:
    """The model, once it is loaded, and told of in log and metrics. ``engine`` takes its place in tests."""
    ready = engine or start.run(lambda tell: load_engine(settings, start.wait, tell, progress=False))
    log.info("model_loaded", model=ready.identity.name, device=ready.device, precision=ready.precision)
    metrics.identify(
        version=__version__,
        model=ready.identity.name,
        revision=ready.identity.revision,
        device=ready.device,
        precision=ready.precision,
    )
    return ready


def calibration_files(settings: Settings) -> list[CalibrationFile]:
    """What ``model.calibration`` names. Raises SettingsError."""
    named = settings.model.calibration
    return [] if named is None else calibration_file.read(Path(named))


def retry_policy(settings: Settings) -> RetryPolicy:
    """How often and how patiently what failed is tried again."""
    retry = settings.retry
    return RetryPolicy(retry.max_attempts, retry.initial_ms / 1000, retry.max_ms / 1000, retry.multiplier, retry.jitter)


def _policy(settings: Settings, instance: str) -> Policy:
    dead_letter = settings.dead_letter
    return Policy(
        retry=retry_policy(settings),
        source=DeadLetterSource(
            settings.topics.dead_letter, settings.kafka.group_id, instance, dead_letter.header_aliases
        ),
        limits=DeadLetterLimits(dead_letter.max_consecutive, dead_letter.max_ratio),
        retry_topics=names.retry_topics(settings.kafka.group_id, settings.topics.retry),
    )


def _trouble(settings: Settings) -> str:
    """Why no broker answers; empty if one does.

    Raises:
        SettingsError: one does, and cannot keep what `delivery.guarantee` promises.
    """
    try:
        cluster_id = reach.cluster_id(settings.kafka, REACH_TIMEOUT_S)
    except BrokerAway as away:
        return str(away)
    if settings.delivery.guarantee == "exactly_once":
        require_transactions(cluster_id)
    return ""


def _request_reader(
    settings: Settings, codecs: Codecs, pooling: Pooling, label_sets: FollowedSets | None, calibrations: Calibrations
) -> RequestReader:
    stored = label_sets.stored if label_sets is not None else None
    return RequestReader(codecs, defaults_of(settings, pooling, stored, calibrations), limits_of(settings))


def _own_certificates(settings: Settings) -> Iterator[OwnCertificate]:
    kafka = settings.kafka
    for name in ("properties", "consumer_properties", "producer_properties"):
        yield from certificates.of_kafka(getattr(kafka, name), f"kafka.{name}")
    if settings.schema_registry.certificate is not None:
        yield from certificates.of_file("schema_registry.certificate", settings.schema_registry.certificate)


class App:
    """One worker. Call `run`; it ends when ``stop_requested`` says so, or with an error.

    Args:
        settings: everything it goes by.
        engine: in place of the checkpoint of the settings, for tests of delivery.
        reload_asked: true once for each time that somebody asks for the checkpoint to be loaded anew.
    """

    def __init__(
        self, settings: Settings, *, engine: Model | None = None, reload_asked: Callable[[], bool] = lambda: False
    ) -> None:
        self._settings = settings
        self._registry = CollectorRegistry()
        self.metrics = Metrics(self._registry)
        self.health = Health(loop_limit_s=LOOP_LIMIT_S, inference_limit_s=settings.model.timeout_s)
        self.http = Endpoint(settings, self.health, self.metrics, self._registry, is_asked=settings.http.inference)
        self._engine = engine
        self._reload = open_reload(settings, load_engine, self.metrics, self.health, reload_asked)
        self._loop: Loop | None = None
        self._inference: InferenceThread | None = None
        self._publisher: Publisher | None = None
        self._label_sets: FollowedSets | None = None
        self._limits: known_limits.KnownLimits | None = None
        self._topic_ids: TopicIds | None = None
        self._freed = process.FreedMemory()
        self._traces: Traces | None = None
        self._readiness_log = ReadinessLog(self.health, time.monotonic())
        self._certificates = CertificateWatch(_own_certificates(settings), self._registry)

    def run(self, stop_requested: Callable[[], bool]) -> bool:
        """Work until asked to stop, then drain. True if everything in hand was answered and committed.

        Raises:
            FatalError: the process must end; nothing that was not acknowledged is committed.
            SettingsError: the checkpoint, the registry or the broker cannot serve.
        """
        try:
            loop = self._start(stop_requested)
            process.collect_rarely()
            while not stop_requested():
                self._step(loop)
            self.http.drain()
            deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
            drained = loop.drain(DRAIN_TIMEOUT_S)
            drained = self.http.await_drained(max(0.0, deadline_s - time.monotonic())) and drained
        except Stopped:
            self.http.drain()
            self.http.await_drained(DRAIN_TIMEOUT_S)
            log.info("stopped", started=False)
            return True
        except FatalError as error:
            raise trouble.fenced(self._settings.kafka.group_instance_id, error) from error.__cause__
        else:
            loop.report.end()
            log.info("drained" if drained else "drain_timed_out", in_flight=loop.in_flight)
            return drained
        finally:
            self.close()

    def _step(self, loop: Loop) -> None:
        """One step of the loop, watched."""
        if self._limits is not None:
            self._limits.refresh()
        loop.step()
        self._certificates.step(time.time())
        now_s = time.monotonic()
        self._freed.give_back(now_s)
        self._readiness_log.step(now_s, self._topic_ids.missing if self._topic_ids is not None else frozenset())
        if self._reload is not None:
            self._reload.step(lambda: not any(loop.quarantine.quarantines()))
        self._check()

    def _check(self) -> None:
        """Raise what crashed a thread, or say that one hangs."""
        self.http.check()
        if self._inference is not None and self._loop is None:
            self._inference.check()
        verdict = self.health.healthy(time.monotonic())
        if not verdict.ok:
            raise Stalled("; ".join(verdict.problems))

    def _start(self, stop_requested: Callable[[], bool]) -> Loop:
        settings = self._settings
        instance = settings.kafka.group_instance_id or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._traces, of_calls = open_traces(settings, instance)
        self.http.trace(of_calls)
        start = Start(stop_requested)
        language_detection.detector(is_needed=settings.model.detects_language)  # before minutes of loading
        start.watch(self._check)
        engine, calibrations, offered = self._load(start)
        policy = _policy(settings, instance)
        shadow = load_shadow(settings, load_engine, start)
        self._inference = self.http.compute(engine, policy.retry, calibrations, shadow)
        codecs = open_codecs(settings.schema_registry, start.wait)
        self._await_registry(codecs, start)
        # One for all: each client costs threads, and connections to every broker.
        shared = client_config.with_callbacks(client_config.common(settings.kafka, "admin"), ErrorLog("admin client"))
        admin = client_config.open_client(AdminClient, shared)
        if settings.topics.label_sets is not None:
            template, shared = settings.model.hypothesis_template, client_config.common(settings.kafka, "label-sets")
            self._label_sets = FollowedSets(
                shared, admin, settings.topics.label_sets, settings.label_sets, template, self.metrics, offered
            )
            self._label_sets.load(stop_requested)
            self.http.open(engine, self._label_sets.stored.view(), calibrations)
        consumer = Consumer(client_config.consumer(settings.kafka))
        written = {settings.topics.output, settings.topics.dead_letter, *(topic for _, topic in policy.retry_topics)}
        self._limits = limits = known_limits.load(settings.kafka, admin, written, self.health.topics_missing)
        self._publisher = open_publisher(settings, consumer, instance, limits)
        self._await_broker(self._publisher, start)
        batch = settings.batch
        topics = [*settings.topics.input, *(topic for _, topic in policy.retry_topics)]
        self._topic_ids = TopicIds(admin, topics)
        self._loop = open_loop(
            consumer=consumer,
            publisher=self._publisher,
            inference=self._inference,
            read=_request_reader(settings, codecs, engine.pooling, self._label_sets, calibrations),
            encode=engine.encode,
            write=ResultWriter(codecs, settings.topics.output, engine.identity),
            refusal=limits.refusal,
            batch=BatchPolicy(batch.max_messages, batch.max_tokens, batch.max_wait_ms / 1000),
            policy=policy,
            max_age_s=settings.limits.max_age_s,
            metrics=self.metrics,
            health=self.health,
            topic_ids=self._topic_ids,
            label_sets=None if self._label_sets is None else (self._label_sets, settings.label_sets.wait_s),
            gate=self.http.calls.gate if self.http.calls is not None else None,
            traces=self._traces,
        )
        self._loop.start(topics)
        log.info("started", instance=instance, http_port=self.http.port, guarantee=settings.delivery.guarantee)
        return self._loop

    def _load(self, start: Start) -> tuple[Model, Calibrations, Callable[[], Calibrations]]:
        """The model, while the log says whether a broker is there to work for; and calibrations.

        First those that requests are read with: a model that is swapped brings its own. Then those that are offered.
        """
        files = calibration_files(self._settings)  # before minutes of loading
        if why := self._unreachable():
            log.warning("broker_away", error=why, next="the model is loaded meanwhile")
        engine = ready_engine(self._settings, self._engine, start, self.metrics)
        calibrations = calibration_file.of_model(files, engine.identity)
        self.health.model_loaded()
        if self._reload is None:
            return engine, calibrations, lambda: calibrations
        served = self._reload.serve(engine, calibrations)
        return served, NONE, lambda: served.calibrations

    def _await_registry(self, codecs: Codecs, start: Start) -> None:
        """Wait for the registry for as long as it takes: an outage at the start is an outage."""
        while True:
            try:
                return start.run(lambda _: codecs.open(result_topic=self._settings.topics.output))
            except RegistryAway as error:
                log.warning("registry_away", error=str(error))
                start.wait(1.0)  # open() has backed off by itself already

    def _await_broker(self, publisher: Publisher, start: Start) -> None:
        """Wait for the broker for as long as it takes."""
        while True:
            if not (why := self._unreachable()):
                try:
                    return publisher.start(START_TIMEOUT_S)
                except BrokerAway as error:
                    why = str(error)
            log.warning("broker_away", error=why)
            start.wait(0.5)  # seconds have passed already

    def _unreachable(self) -> str:
        """Why no broker answers, for /readyz too; empty if one does."""
        why = _trouble(self._settings)
        self.health.broker_away(why)
        return why

    def close(self) -> None:
        """CommitBatch everything, in the reverse order of `run`. Safe at any point of the start."""
        try:
            if self._loop is not None:
                self._loop.close()
            elif self._publisher is not None:
                self._publisher.close()
        finally:
            if self._inference is not None:
                self._inference.stop(timeout_s=1.0)
            if self._label_sets is not None:
                self._label_sets.close()
            self.http.close()
            if self._traces is not None:
                self._traces.close()
