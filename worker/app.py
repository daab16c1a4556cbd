"""Wiring and life cycle: settings become parts; start -> run -> drain -> close.

Two threads and two bounded queues. The Kafka thread (this one) owns consumer, producer, batcher, ledger and retries;
the inference thread owns the model and the device. While batch N is computed, batch N+1 is decoded and tokenised and
batch N-1 is produced.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from worker import __version__, process
from worker.avro.codec import Codecs, open_codecs
from worker.avro.request import Defaults, Limits
from worker.errors import BrokerAway, FatalError, RegistryAway, Stalled
from worker.http.health import Health, HealthServer
from worker.http.readiness_log import ReadinessLog
from worker.inference.stage import Tell, tell_nobody
from worker.kafka import client_config, known_limits, reach
from worker.kafka.at_least_once import AtLeastOncePublisher
from worker.kafka.client_errors import ErrorLog
from worker.kafka.consumer import Consumer
from worker.kafka.fencing import RecoveringPublisher
from worker.kafka.publisher import Publisher
from worker.kafka.topic_ids import TopicIds
from worker.kafka.transactional import TransactionalPublisher
from worker.kafka.trial import Trial
from worker.label_sets.topic import LabelSets
from worker.messages import Encoded, ModelIdentity, Pooling, Request
from worker.pipeline.admit import RequestReader
from worker.pipeline.batch import BatchPolicy
from worker.pipeline.infer import InferenceThread, Runs
from worker.pipeline.loop import Loop
from worker.pipeline.resolve import Policy, ResultWriter
from worker.pipeline.wiring import open_loop
from worker.rules import names, trouble
from worker.rules.dead_letter import DeadLetterSource
from worker.rules.dead_letter_limit import DeadLetterLimits
from worker.rules.retry import RetryPolicy
from worker.settings import Settings
from worker.start import Start, Stopped
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from worker.inference.engine import Engine

log = structlog.get_logger("worker")

# A supervisor that sends SIGTERM waits 30 s as a rule (Kubernetes' default); closing takes up to five more than this.
DRAIN_TIMEOUT_S: Final = 20.0
START_TIMEOUT_S: Final = 5.0
# From a disk that is cold they take half a minute.
IMPORT_LIMIT_S: Final = 300.0
# A step holds at most a publish and a revoke, each with its own deadline.
LOOP_LIMIT_S: Final = 60.0
REACH_TIMEOUT_S: Final = 2.0


class Model(Runs, Protocol):
    """What the worker asks of `worker.inference.engine.Engine`."""

    @property
    def identity(self) -> ModelIdentity:
        """Name and revision, as results carry them."""

    @property
    def device(self) -> str:
        """Where it computes."""

    @property
    def precision(self) -> str:
        """What it computes in."""

    @property
    def pooling(self) -> Pooling:
        """How texts are embedded where the request does not say."""

    def encode(self, request: Request) -> Encoded:
        """Tokens of a request. Raises Rejection."""


def load_engine(
    settings: Settings,
    wait: Callable[[float], None] = time.sleep,
    tell: Tell = tell_nobody,
    *,
    progress: bool | None = None,
) -> Engine:
    """The checkpoint, loaded, tested and warm.

    Args:
        settings: Which, where and how.
        wait: Passes the time between attempts to download it.
        tell: Is told what goes on.
        progress: Show bars while it is downloaded; None: on a terminal.

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
        default_language=model.default_language,
        pooling=None if model.pooling == "auto" else Pooling(model.pooling),
        self_test=model.self_test,
        progress=progress,
        sleep=wait,
        tell=tell,
        threads=model.threads,
    )
    tell("warming up", model.timeout_s)
    engine = Engine(
        checkpoint,
        max_tokens=settings.batch.max_tokens,
        max_request_tokens=settings.limits.max_tokens,
        cache_pairs=settings.cache.max_pairs,
    )
    engine.warm_up()
    return engine


def _policy(settings: Settings, instance: str) -> Policy:
    retry, dead_letter = settings.retry, settings.dead_letter
    return Policy(
        retry=RetryPolicy(
            retry.max_attempts, retry.initial_ms / 1000, retry.max_ms / 1000, retry.multiplier, retry.jitter
        ),
        source=DeadLetterSource(settings.topics.dead_letter, settings.kafka.group_id, instance),
        limits=DeadLetterLimits(dead_letter.max_consecutive, dead_letter.max_ratio),
        retry_topics=names.retry_topics(settings.kafka.group_id, settings.topics.retry),
    )


class App:
    """One worker. Call `run`; it ends when ``stop_requested`` says so, or with an error.

    Args:
        settings: everything it goes by.
        engine: in place of the checkpoint of the settings, for tests of delivery.
    """

    def __init__(self, settings: Settings, *, engine: Model | None = None) -> None:
        self._settings = settings
        self._registry = CollectorRegistry()
        self.metrics = Metrics(self._registry)
        self.health = Health(loop_limit_s=LOOP_LIMIT_S, inference_limit_s=settings.model.timeout_s)
        self.http = HealthServer(
            settings.http.host, settings.http.port, health=self.health, registry=self._registry, clock=time.monotonic
        )
        self._engine = engine
        self._loop: Loop | None = None
        self._inference: InferenceThread | None = None
        self._publisher: Publisher | None = None
        self._label_sets: LabelSets | None = None
        self._limits: known_limits.KnownLimits | None = None
        self._topic_ids: TopicIds | None = None
        self._freed = process.FreedMemory()
        self._readiness_log = ReadinessLog(self.health, time.monotonic())

    def run(self, stop_requested: Callable[[], bool]) -> bool:
        """Work until asked to stop, then drain. True if everything in hand was answered and committed.

        Raises:
            FatalError: the process must end; nothing that was not acknowledged is committed.
            SettingsError: the checkpoint or the registry cannot serve.
        """
        try:
            loop = self._start(stop_requested)
            process.collect_rarely()
            while not stop_requested():
                self._step(loop)
            drained = loop.drain(DRAIN_TIMEOUT_S)
        except Stopped:
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
        if self._label_sets is not None:
            self._label_sets.refresh()
        if self._limits is not None:
            self._limits.refresh()
        loop.step()
        now_s = time.monotonic()
        self._freed.give_back(now_s)
        self._readiness_log.step(now_s, self._topic_ids.missing if self._topic_ids is not None else frozenset())
        verdict = self.health.healthy(now_s)
        if not verdict.ok:
            raise Stalled("; ".join(verdict.problems))

    def _start(self, stop_requested: Callable[[], bool]) -> Loop:
        settings = self._settings
        start = Start(stop_requested)
        engine = self._load(start)
        codecs = open_codecs(settings.schema_registry, start.wait)
        self._await_registry(codecs, start)
        # One for all: each client costs threads, and connections to every broker.
        shared = client_config.with_callbacks(client_config.common(settings.kafka, "admin"), ErrorLog("admin client"))
        admin = client_config.open_client(AdminClient, shared)
        if settings.topics.label_sets is not None:
            shared = client_config.common(settings.kafka, "label-sets")
            self._label_sets = LabelSets(shared, admin, settings.topics.label_sets)
            self._label_sets.load(stop_requested)
        instance = settings.kafka.group_instance_id or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        consumer = Consumer(client_config.consumer(settings.kafka))
        policy = _policy(settings, instance)
        written = {settings.topics.output, settings.topics.dead_letter, *(topic for _, topic in policy.retry_topics)}
        self._limits = limits = known_limits.load(settings.kafka, admin, written, self.health.topics_missing)
        self._publisher = self._open_publisher(consumer, instance, limits)
        self._await_broker(self._publisher, start)
        self._inference = InferenceThread(
            engine, policy.retry, time.monotonic, self.health.inference_beat, self.health.inference_idle
        )
        batch = settings.batch
        topics = [*settings.topics.input, *(topic for _, topic in policy.retry_topics)]
        self._topic_ids = TopicIds(admin, topics)
        self._loop = open_loop(
            consumer=consumer,
            publisher=self._publisher,
            inference=self._inference,
            read=self._request_reader(codecs, engine.pooling),
            encode=engine.encode,
            write=ResultWriter(codecs, settings.topics.output, engine.identity),
            refusal=limits.refusal,
            batch=BatchPolicy(batch.max_messages, batch.max_tokens, batch.max_wait_ms / 1000, batch.wait_for_more),
            policy=policy,
            max_age_s=settings.limits.max_age_s,
            metrics=self.metrics,
            health=self.health,
            topic_ids=self._topic_ids,
        )
        self._inference.start()
        self._loop.start(topics)
        log.info("started", instance=instance, http_port=self.http.port, guarantee=settings.delivery.guarantee)
        return self._loop

    def _load(self, start: Start) -> Model:
        """The model, while the log says whether a broker is there to work for."""
        if why := self._unreachable():
            log.warning("broker_away", error=why, next="the model is loaded meanwhile")
        engine = self._engine or start.run(lambda tell: load_engine(self._settings, start.wait, tell, progress=False))
        log.info("model_loaded", model=engine.identity.name, device=engine.device, precision=engine.precision)
        self.metrics.identify(
            version=__version__,
            model=engine.identity.name,
            revision=engine.identity.revision,
            device=engine.device,
            precision=engine.precision,
        )
        self.health.model_loaded()
        return engine

    def _request_reader(self, codecs: Codecs, pooling: Pooling) -> RequestReader:
        model, limits = self._settings.model, self._settings.limits
        return RequestReader(
            codecs,
            Defaults(
                model.hypothesis_template,
                model.long_text,
                pooling,
                model.normalize,
                self._label_sets.sets if self._label_sets is not None else {},
            ),
            Limits(limits.max_text_chars, limits.max_labels, limits.max_label_chars, limits.max_message_bytes),
        )

    def _open_publisher(self, consumer: Consumer, instance: str, limits: known_limits.KnownLimits) -> Publisher:
        kafka = self._settings.kafka
        if self._settings.delivery.guarantee == "exactly_once":
            config = client_config.producer(kafka, transactional_id=names.transactional_id(kafka.group_id, instance))
            return RecoveringPublisher(
                lambda most_bytes: TransactionalPublisher(limits.fitted(config, most_bytes), consumer, time.monotonic),
                lambda: Trial(config, consumer, time.monotonic),
                consumer,
                consumer.commits.committed,
                time.monotonic,
                consumer.commits.prove_membership if kafka.group_instance_id is not None else None,
            )
        config = limits.fitted(client_config.producer(kafka, transactional_id=None))
        return AtLeastOncePublisher(config, consumer, time.monotonic)

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
        why = reach.trouble(self._settings.kafka, REACH_TIMEOUT_S)
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
