"""`xnli-worker demo`: the embedded broker, the shipped checkpoint, the real worker, and what came of every message.

The worker runs as a process of its own, by the same command as in production. Nothing is simulated but the cluster.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from worker import streams, terminal
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.demo.outcome_table import Answer, Sample, print_json, print_table
from worker.errors import FatalError, Reason
from worker.kafka import client_config
from worker.kafka.embedded import EmbeddedBroker
from worker.process import take_along
from worker.rules.dead_letter import PREFIX
from worker.settings import Settings, load
from worker.streams import OutputLost

FOLDER: Final = Path(__file__).parent
CHECKPOINT: Final = FOLDER / "checkpoint"
PROGRAM: Final = FOLDER.parent / "__main__.py"
SAMPLES: Final = FOLDER / "samples.jsonl"
TIMEOUT_S: Final = 150.0


@dataclass(slots=True)
class Tally:
    """What the worker's own log says of its batches."""

    ready: threading.Event = field(default_factory=threading.Event)
    batches: int = 0
    pairs: int = 0


def samples(codecs: Codecs, count: int | None) -> list[Sample]:
    """The shipped requests and, among them, messages that are wrong on purpose; ``count`` repeats or cuts the list."""
    good = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    made = [_sample(codecs, request) for request in good]
    for index, bad in enumerate(_malformed(codecs)):
        made.insert(min(len(made), 4 + index * 9), bad)  # between their neighbours, whom they must not harm
    if count is None:
        return made
    return [_renamed(made[i % len(made)], i // len(made)) for i in range(count)]


def _renamed(sample: Sample, round_number: int) -> Sample:
    if not round_number:
        return sample
    return Sample(f"{sample.key}#{round_number}", sample.language, sample.shown, sample.value, sample.reason)


def _sample(codecs: Codecs, request: dict[str, Any]) -> Sample:
    value, _ = codecs.encode_request(json_request.request(request))
    # The samples' ids begin with the language of their text.
    return Sample(request["id"], request["id"].partition("-")[0], request["text"], value)


def _malformed(codecs: Codecs) -> Iterator[Sample]:
    def request(**fields: Any) -> bytes:
        datum = json_request.request({"id": "wrong", "text": "A perfectly good text.", "labels": ["a", "b"]}) | fields
        return codecs.encode_request(datum)[0]

    whole = request()
    yield Sample("random-bytes", "", "(random bytes)", b"\x17\x2a nothing like Avro", Reason.MALFORMED)
    yield Sample("cut-short", "", "(Avro, cut in half)", whole[: len(whole) // 2], Reason.MALFORMED)
    yield Sample("unknown-schema", "", "(an unknown schema)", b"\xc3\x01" + bytes(8) + whole[10:], Reason.SCHEMA)
    yield Sample("no-labels", "en", "A text, but no labels to choose from", request(labels=[]), Reason.INVALID)
    template = "Secrets: {.__class__}"
    yield Sample("bad-template", "en", f"Template: {template}", request(hypothesis_template=template), Reason.INVALID)
    yield Sample("huge-text", "en", "A text of 500,000 characters", request(text="spam " * 100_000), Reason.TOO_LARGE)


def play(count: int | None, *, as_json: bool, stop_requested: Callable[[], bool], show_all: bool = False) -> bool:
    """Send the samples, let the worker answer, show it. True if every message fared as it should."""
    console = Console(stderr=True)
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory(prefix="xnli-demo-") as folder:
        environment = {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "XNLI_MODEL__NAME": "demo",
            "XNLI_MODEL__DEVICE": "cpu",
            "XNLI_DELIVERY__GUARANTEE": "at_least_once",  # the embedded broker's transactions are hollow
            "XNLI_HTTP__PORT": "0",
        }
        settings = load(environ=environment)
        broker.create(*settings.topics.input, settings.topics.output, settings.topics.dead_letter)
        sent = samples(Codecs(), count)
        with _progress(console) as progress:
            loading = progress.add_task("starting the worker", total=None)
            tally = Tally()
            with _worker(environment, Path(folder) / "worker.log", tally) as process:
                if not _wait_ready(process, tally, stop_requested):
                    return False
                progress.update(loading, visible=False)
                began_s = time.monotonic()
                _send(settings, sent)
                bar = progress.add_task("answered", total=len(sent))
                answers = _collect(
                    settings, sent, process, stop_requested, lambda done: progress.update(bar, completed=done)
                )
    if stop_requested() and len(answers) < len(sent):
        console.print(f"stopped with {len(answers)} of {len(sent)} messages answered")
        return False
    seconds = max((answer.received_s for answer in answers.values()), default=began_s) - began_s
    wrong = _wrong(sent, answers)
    if process.returncode != 0:
        wrong.append(f"the worker ended with exit code {process.returncode}")
    summary = _summary(sent, answers, tally, seconds, wrong)
    try:
        if as_json or not sys.stdout.isatty():
            print_json(sent, answers, summary)
        else:
            print_table(sent, answers, summary, show_all=show_all)
    except OutputLost as lost:
        streams.complain(f"stdout: {lost.strerror}; {json.dumps(summary)}")
    for line in wrong:
        console.print(f"wrong: {terminal.harmless(line)}", style="bold red", markup=False)
    return not wrong


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class _worker:  # noqa: N801 (used as a context manager, where it reads as a verb)
    """`xnli-worker run` as a process; SIGTERM and a drain at the end, its log kept for when something fails."""

    def __init__(self, environment: dict[str, str], log_path: Path, tally: Tally) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
        self._log_path = log_path
        self._tally = tally
        self._process = subprocess.Popen(  # noqa: S603 (this interpreter, and a file of ours)
            # Without the current folder on its path, in which there may be a queue.py or a worker.py.
            [sys.executable, "-P", str(PROGRAM), "run"],
            env=inherited | environment | {"HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for us: we ask the worker to drain
        )
        take_along(self._process)
        if self._process.stderr is None:
            raise AssertionError
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=5)
        if self._process.returncode not in {0, -signal.SIGTERM}:  # SIGTERM before it had a handler
            sys.stderr.write(self._log_path.read_text(encoding="utf-8", errors="replace")[-8000:])

    def _read(self, stream: IO[bytes]) -> None:
        with self._log_path.open("wb") as log_file:
            for line in stream:
                log_file.write(line)
                log_file.flush()
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if event.get("event") == "rebalance" and event.get("held"):
                    self._tally.ready.set()
                elif event.get("event") == "summary":
                    self._tally.batches += event["batches"]
                    self._tally.pairs += event["pairs"]


def _wait_ready(process: subprocess.Popen[bytes], tally: Tally, stop_requested: Callable[[], bool]) -> bool:
    """Wait for the worker. False if told to stop meanwhile."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not tally.ready.wait(0.1):
        if process.poll() is not None:
            raise FatalError(f"the worker ended with exit code {process.returncode} before it was ready")
        if stop_requested():
            return False
        if time.monotonic() > deadline_s:
            raise FatalError(f"the worker did not become ready in {TIMEOUT_S:g} s")
    return True


def _send(settings: Settings, sent: list[Sample]) -> None:
    producer = Producer(client_config.producer(settings.kafka, transactional_id=None))
    for sample in sent:
        while True:
            try:
                producer.produce(settings.topics.input[0], value=sample.value, key=sample.key.encode())
            except BufferError:
                producer.poll(0.1)
            else:
                break
    left = producer.flush(30)
    if left:
        raise FatalError(f"{left} messages could not be sent to the embedded broker")


def _collect(
    settings: Settings,
    sent: list[Sample],
    process: subprocess.Popen[bytes],
    stop_requested: Callable[[], bool],
    on_answer: Callable[[int], None],
) -> dict[str, Answer]:
    """Read results and dead letters until each sample has one, the worker ends, or time is up."""
    topics = settings.topics
    consumer = Consumer(
        client_config.common(settings.kafka, "demo") | {"group.id": "xnli-demo", "enable.auto.commit": False}
    )
    wanted = {sample.key for sample in sent}
    answers: dict[str, Answer] = {}
    codecs = Codecs()
    try:
        consumer.assign(
            [
                TopicPartition(topic, number, OFFSET_BEGINNING)
                for topic in (topics.output, topics.dead_letter)
                for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions
            ]
        )
        deadline_s = time.monotonic() + TIMEOUT_S
        while wanted - answers.keys() and not stop_requested() and time.monotonic() < deadline_s:
            message = consumer.poll(0.1)
            if message is None:
                if process.poll() is not None:
                    break
                continue
            if message.error() is not None:
                continue
            key = (message.key() or b"").decode()
            headers: dict[str, Any] = dict(message.headers() or [])
            if message.topic() == topics.output:
                result = codecs.read_result(message.value() or b"", ())
                answers[key] = Answer(topics.output, result, None, "", time.monotonic())
            else:
                reason, text = (headers.get(f"{PREFIX}{name}") or b"" for name in ("reason", "message"))
                answers[key] = Answer(topics.dead_letter, None, reason.decode(), text.decode(), time.monotonic())
            on_answer(len(answers))
    finally:
        consumer.close()
    return answers


def _wrong(sent: list[Sample], answers: dict[str, Answer]) -> list[str]:
    """What did not fare as it should, a sentence each."""
    lines = []
    for sample in sent:
        answer = answers.get(sample.key)
        expected = f"a dead letter ({sample.reason})" if sample.reason else "a result"
        if answer is None:
            lines.append(f"{sample.key}: no answer; expected {expected}")
        elif answer.reason != sample.reason:
            got = f"a dead letter ({answer.reason}: {answer.message})" if answer.reason else "a result"
            lines.append(f"{sample.key}: {got}; expected {expected}")
    return lines


def _summary(
    sent: list[Sample], answers: dict[str, Answer], tally: Tally, seconds: float, wrong: list[str]
) -> dict[str, Any]:
    dead = sum(answer.reason is not None for answer in answers.values())
    return {
        "messages": len(sent),
        "answered": len(answers) - dead,
        "dead_lettered": dead,
        "wrong": len(wrong),
        "batches": tally.batches,
        "pairs": tally.pairs,
        "seconds": round(seconds, 3),
        "messages_per_s": round(len(answers) / seconds, 1) if seconds > 0 else 0.0,
        "pairs_per_s": round(tally.pairs / seconds, 1) if seconds > 0 else 0.0,
    }
