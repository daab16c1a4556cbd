"""The whole worker in this process, over the embedded broker, with an engine that is loaded already: for `bench`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from worker.app import App
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.errors import FatalError
from worker.inference.engine import Engine
from worker.kafka import client_config
from worker.kafka.embedded import EmbeddedBroker
from worker.messages import Request
from worker.settings import load
from worker.telemetry import log

_START_S: Final = 60.0
_POLL_S: Final = 0.1


class Loopback:
    """A context manager: a broker, a worker on a thread that consumes from it, and a client to ask it.

    Delivery is at-least-once, since the embedded broker's transactions are hollow.
    """

    def __init__(self, engine: Engine) -> None:
        log.configure("warning", "console", sys.stderr)
        self._broker = EmbeddedBroker()
        environment = {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": self._broker.bootstrap_servers,
            "XNLI_MODEL__NAME": engine.identity.name,
            "XNLI_DELIVERY__GUARANTEE": "at_least_once",
            "XNLI_HTTP__PORT": "0",
        }
        self._settings = load(environ=environment)
        topics = self._settings.topics
        self._broker.create(*topics.input, topics.output, topics.dead_letter)
        self._codecs = Codecs()
        self._producer = Producer(client_config.producer(self._settings.kafka, transactional_id=None))
        self._consumer = Consumer(
            client_config.common(self._settings.kafka, "bench") | {"group.id": "bench", "enable.auto.commit": False}
        )
        self._pipeline = App(self._settings, engine=engine)
        self._stopping = threading.Event()
        self._crash: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="kafka")

    def __enter__(self) -> Self:
        topics = self._settings.topics
        self._consumer.assign(
            [
                TopicPartition(topic, number, OFFSET_END)
                for topic in (topics.output, topics.dead_letter)
                for number in self._consumer.list_topics(topic, timeout=10).topics[topic].partitions
            ]
        )
        self._thread.start()
        deadline_s = time.monotonic() + _START_S
        while not self._pipeline.health.ready().ok:
            self._check(deadline_s)
            self._consumer.poll(_POLL_S)
        return self

    def answer(self, requests: Sequence[Request]) -> None:
        """Send the requests and wait until each has its result.

        Raises:
            FatalError: the worker ended, or has answered with a dead letter.
        """
        topics = self._settings.topics
        for request in requests:
            datum = json_request.request({"id": request.id, "text": request.text, "labels": list(request.labels)})
            self._producer.produce(topics.input[0], self._codecs.encode_request(datum)[0], request.id)
        self._producer.flush()
        answered = 0
        while answered < len(requests):
            self._check(None)
            for message in self._consumer.consume(len(requests), _POLL_S):
                if message.error() is not None:
                    continue
                if message.topic() == topics.dead_letter:
                    raise FatalError("a request of the bench became a dead letter")
                answered += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._consumer.close()
        del self._producer  # it has no close(); left behind, it would complain that the broker has gone
        self._broker.close()

    def _work(self) -> None:
        try:
            self._pipeline.run(self._stopping.is_set)
        except BaseException as error:  # noqa: BLE001 (raised again by whoever waits for an answer)
            self._crash = error

    def _check(self, deadline_s: float | None) -> None:
        if self._crash is not None:
            raise self._crash
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise FatalError("the worker did not become ready over the embedded broker")
