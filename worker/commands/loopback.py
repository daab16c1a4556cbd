"""The whole worker in this process, over the embedded broker, with an engine that is loaded already: for `bench`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from worker.app import App
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.errors import FatalError
from worker.inference.engine import Engine
from worker.kafka import client_config
from worker.kafka.embedded import EmbeddedBroker
from worker.messages import Request
from worker.settings import Settings, load
from worker.telemetry import log

_START_S: Final = 60.0
_POLL_S: Final = 0.1


@contextmanager
def loopback(engine: Engine) -> Iterator[Callable[[Sequence[Request]], None]]:
    """A broker and a worker on a thread; yields a function that sends requests and waits until each has its result.

    Delivery is at-least-once, since the embedded broker's transactions are hollow.

    Raises:
        FatalError: the worker ended, does not become ready, or has answered with a dead letter.
    """
    log.configure("warning", "console", sys.stderr)
    with EmbeddedBroker() as broker, ThreadPoolExecutor(1, "kafka") as executor:
        environment = {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "XNLI_MODEL__NAME": engine.identity.name,
            "XNLI_DELIVERY__GUARANTEE": "at_least_once",
            "XNLI_HTTP__PORT": "0",
        }
        settings = load(environ=environment)
        broker.create(*settings.topics.input, settings.topics.output, settings.topics.dead_letter)
        client = _Client(settings)
        worker = App(settings, engine=engine)
        stopping = threading.Event()
        running = executor.submit(worker.run, stopping.is_set)
        try:
            deadline_s = time.monotonic() + _START_S
            while not worker.health.ready().ok:
                _require(running)
                if time.monotonic() > deadline_s:
                    raise FatalError("the worker did not become ready over the embedded broker")
                client.consumer.poll(_POLL_S)  # finds the ends of the topics meanwhile
            yield partial(client.answer, running)
        finally:
            stopping.set()
            client.close()
        running.result()


class _Client:
    """Sends requests, and reads what comes of them from now on."""

    def __init__(self, settings: Settings) -> None:
        self._topics = settings.topics
        self._codecs = Codecs()
        self._producer = Producer(client_config.producer(settings.kafka, transactional_id=None))
        self.consumer = Consumer(
            client_config.common(settings.kafka, "bench") | {"group.id": "bench", "enable.auto.commit": False}
        )
        partitions = [
            TopicPartition(topic, number, OFFSET_END)
            for topic in (self._topics.output, self._topics.dead_letter)
            for number in self.consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ]
        self.consumer.assign(partitions)

    def answer(self, running: Future[bool], requests: Sequence[Request]) -> None:
        for request in requests:
            datum = json_request.request({"id": request.id, "text": request.text, "labels": list(request.labels)})
            self._producer.produce(self._topics.input[0], self._codecs.encode_request(datum)[0], request.id)
        self._producer.flush()
        answered = 0
        while answered < len(requests):
            _require(running)
            for message in self.consumer.consume(len(requests), _POLL_S):
                if message.error() is not None:
                    continue
                if message.topic() == self._topics.dead_letter:
                    raise FatalError("a request of the bench became a dead letter")
                answered += 1

    def close(self) -> None:
        self.consumer.close()
        del self._producer  # it has no close(); left behind, it would complain that the broker has gone


def _require(running: Future[bool]) -> None:
    if running.done():
        raise FatalError("the worker ended over the embedded broker") from running.exception()
