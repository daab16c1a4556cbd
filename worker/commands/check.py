"""`xnli-worker check`: tries what the worker will need, and says in one line each what is right or how to mend it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, ConfigResource
from rich.console import Console
from rich.text import Text

from worker import redaction, screen, streams, terminal
from worker import settings as settings_module
from worker.avro.codec import Codecs, open_codecs, schema_folder
from worker.commands import connection
from worker.commands.connection import Reports, say
from worker.commands.json_lines import is_wanted
from worker.errors import BrokerAway, FatalError, SettingsError, TopicMissing, WorkerError
from worker.kafka import client_config, client_errors
from worker.kafka.client_config import Properties
from worker.kafka.embedded import is_embedded, require_transactions
from worker.learn import calibration_file
from worker.rules import names
from worker.settings import Settings
from worker.start import Start
from worker.streams import OutputLost
from worker.telemetry import log

if TYPE_CHECKING:
    from confluent_kafka.admin._metadata import ClusterMetadata  # where the class is typed

_BROKER_TIMEOUT_S: Final = 5.0
# The first transaction of a cluster creates the topic that transactions are kept in.
_TRANSACTIONS_TIMEOUT_S: Final = 15.0

_OK, _FAILED, _SKIPPED, _CAUTION = "ok", "FAIL", "skip", "warn"
_STYLES: Final = {_OK: "green", _FAILED: "bold red", _SKIPPED: "dim", _CAUTION: "magenta"}

_INDENT: Final = 20  # of what was found: behind the status and the step

_Client = TypeVar("_Client", Consumer, Producer)


class _Needless(Exception):  # noqa: N818 (an answer, not a failure)
    """The settings ask for nothing that could be tried here."""


class _Caution(Exception):  # noqa: N818 (an answer, not a failure)
    """The worker runs as things are, but somebody may be sorry for it one day."""


@dataclass(slots=True)
class _Trial:
    """What later steps learn from earlier ones."""

    settings: Settings
    option: str  # what names the settings' file on a command line
    cluster: ClusterMetadata | None = None


def check(config: Path | None, *, as_json: bool = False) -> int:
    """Try everything and return the exit code.

    It changes nothing a worker would not change: with exactly_once it opens (and leaves empty) a transactional id of
    its own, and with schema_registry.auto_register it registers the result's schema.

    Returns:
        0 all is well; 1 something is away or missing; 2 a setting or the checkpoint is wrong.
    """
    log.configure("warning", "console", sys.stderr)
    report = _Report(as_json)
    trial: _Trial | None = None
    with report.step("settings"):
        trial = _Trial(settings_module.load(config), f" --config {config}" if config is not None else "")
        report.ok("settings", str(config) if config is not None else "from the environment")
    for name, needs, attempt in _STEPS:
        missing = next((need for need in ("settings", *needs) if need in report.bad), None)
        if missing is not None or trial is None:
            report.skip(name, f"needs {missing}")
            continue
        with report.step(name):
            report.ok(name, attempt(trial))
    return report.exit_code


@dataclass(slots=True)
class _Report:
    """A line on stdout for each finding: for people on a terminal, JSON elsewhere."""

    as_json: bool
    exit_code: int = 0
    bad: set[str] = field(default_factory=set)
    _console: Console = field(default_factory=lambda: Console(highlight=False))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Whatever goes wrong inside becomes lines; nothing is raised."""
        try:
            yield
        except _Needless as reason:
            self._write(_SKIPPED, name, str(reason))
        except _Caution as found:
            for finding in str(found).split("\n"):
                self._write(_CAUTION, name, finding)
        except SettingsError as error:
            self._fail(name, str(error), 2)
        except Exception as error:  # noqa: BLE001 (what a driver or a damaged file raises is a finding, not a crash)
            self._fail(name, str(error) if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}", 1)

    def ok(self, name: str, what: str) -> None:
        """It works."""
        self._write(_OK, name, what)

    def skip(self, name: str, why: str) -> None:
        """It could not be tried; what depends on it cannot either."""
        self.bad.add(name)
        self._write(_SKIPPED, name, why)

    def _fail(self, name: str, why: str, code: int) -> None:
        self.bad.add(name)
        self.exit_code = max(self.exit_code, code)
        for finding in why.split("\n"):
            self._write(_FAILED, name, finding)

    def _write(self, status: str, name: str, what: str) -> None:
        clean = redaction.in_text(what)
        columns = self._console.width - _INDENT if self._console.is_terminal else sys.maxsize
        told = f"\n{' ' * _INDENT}".join(screen.wrapped(terminal.harmless(clean), columns))
        line = Text.assemble((f"{status:<6}", _STYLES[status]), f"{name:<14}{told}")
        try:
            if self._console.stderr or not is_wanted(self.as_json):
                self._console.print(line, soft_wrap=True)
            else:
                sys.stdout.write(json.dumps({"check": name, "status": status.lower(), "message": clean}) + "\n")
                sys.stdout.flush()  # the model comes last, and takes its time
        except OutputLost as lost:  # what was found out matters, not where it is said
            streams.complain(f"stdout: {lost.strerror}; the report goes on here")
            self._console = Console(stderr=True, highlight=False)
            self._console.print(line, soft_wrap=True)


def _schemas(_: _Trial) -> str:
    Codecs()  # reads and compiles them
    return ", ".join(path.name for path in sorted(schema_folder().glob("*.avsc")))


def _broker(trial: _Trial) -> str:
    kafka = trial.settings.kafka
    # The worker's own properties, so that each of them is tried; a consumer's question creates no topic.
    with _connected(Producer, client_config.producer(kafka, transactional_id=None), Reports()):
        pass
    reports = Reports()
    with _connected(Consumer, client_config.consumer(kafka), reports) as consumer:
        trial.cluster = connection.metadata(consumer, kafka, reports, _BROKER_TIMEOUT_S)
    count = len(trial.cluster.brokers)
    kind = "embedded broker of librdkafka" if is_embedded(trial.cluster.cluster_id) else "broker"
    return f"{count} {kind}{'s' if count != 1 and kind == 'broker' else ''} at {kafka.bootstrap_servers}"


def _topics(trial: _Trial) -> str:
    topics = trial.settings.topics
    if trial.cluster is None:
        raise RuntimeError("not asked")
    wanted = {**dict.fromkeys(topics.input, "input"), topics.output: "output", topics.dead_letter: "dead_letter"}
    wanted |= dict.fromkeys(_retry_topics(trial.settings), "retry")
    if topics.label_sets is not None:
        wanted[topics.label_sets] = "label_sets"
    known = trial.cluster.topics
    counts = {topic: len(known[topic].partitions) for topic in wanted if topic in known}
    findings: list[str] = []
    for topic, key in wanted.items():
        if topic not in known:
            findings.append(
                f"topics.{key} = {topic!r} is not there, or this user may not see it: create it "
                f"(xnli-worker topics create{trial.option})"
            )
            continue
        leaderless = sorted(number for number, found in known[topic].partitions.items() if found.leader < 0)
        if leaderless:
            findings.append(
                f"topics.{key} = {topic!r}: partitions {leaderless} have no leader: start the brokers that hold them"
            )
    if findings:
        raise TopicMissing("\n".join(findings))
    return ", ".join(f"{topic} ({counts[topic]} partition{'' if counts[topic] == 1 else 's'})" for topic in wanted)


def _retry_topics(settings: Settings) -> tuple[str, ...]:
    return tuple(topic for _, topic in names.retry_topics(settings.kafka.group_id, settings.topics.retry))


def _retention(trial: _Trial) -> str:
    """Dead letters keep their requests' timestamps, and retention counts from timestamps unless the broker stamps."""
    topic = trial.settings.topics.dead_letter
    if trial.cluster is not None and is_embedded(trial.cluster.cluster_id):
        raise _Needless("the embedded broker deletes nothing")
    admin = connection.connect(AdminClient, client_config.producer(trial.settings.kafka, None), Reports())
    asked = ConfigResource(ConfigResource.Type.TOPIC, topic)
    try:
        found = admin.describe_configs([asked], request_timeout=_BROKER_TIMEOUT_S)[asked].result()
    except KafkaException as error:
        raise _Needless(f"{topic} does not show its configuration: {error.args[0].str()}") from None  # or is not there
    kept_ms, stamp = (found[name].value for name in ("retention.ms", "message.timestamp.type"))
    if "delete" in found["cleanup.policy"].value and kept_ms != "-1" and stamp != "LogAppendTime":
        raise _Caution(
            f"{topic} deletes records whose own timestamps are {int(kept_ms) / 86_400_000:g} days old, and a "
            "dead letter keeps its request's: that of an old request may be gone before anybody reads it; set "
            "message.timestamp.type=LogAppendTime or retention.ms=-1 on the topic"
        )
    return f"{topic} keeps dead letters " + ("for ever" if kept_ms == "-1" else f"{int(kept_ms) / 86_400_000:g} days")


def _transactions(trial: _Trial) -> str:
    settings = trial.settings
    if settings.delivery.guarantee != "exactly_once":
        raise _Needless(f"not used: delivery.guarantee is {settings.delivery.guarantee!r}")
    if trial.cluster is not None:
        require_transactions(trial.cluster.cluster_id)
    # Always the same id: no worker is fenced by it, and the coordinator, which remembers ids for days, remembers one.
    own = names.transactional_id(settings.kafka.group_id, names.CHECK_INSTANCE)
    config = client_config.producer(settings.kafka, transactional_id=own)
    reports = Reports()
    began_s = time.monotonic()
    with _connected(Producer, config, reports) as producer:
        try:
            producer.init_transactions(_TRANSACTIONS_TIMEOUT_S)
        except KafkaException as error:
            found: KafkaError = error.args[0]
            producer.poll(0)
            said = f"{found.name()}: {found.str()}" + (f" ({reports.cause})" if reports.cause else "")
            if client_errors.is_retriable(found):
                raise BrokerAway(
                    f"the transaction coordinator is not ready after {_TRANSACTIONS_TIMEOUT_S:g} s: {said}; a cluster "
                    "of fewer than 3 brokers needs transaction.state.log.replication.factor and .min.isr that it can "
                    "meet; without transactions, set delivery.guarantee = 'at_least_once'"
                ) from None
            raise FatalError(
                f"no transactions for ids that begin with {settings.kafka.group_id!r}: {said}; allow them (ACL: Write "
                "on that TransactionalId prefix), or set delivery.guarantee = 'at_least_once'"
            ) from None
    return f"granted in {time.monotonic() - began_s:.1f} s"


def _registry(trial: _Trial) -> str:
    registry = trial.settings.schema_registry
    if registry.url is None:
        raise _Needless("not used: schema_registry.url is not set, values carry Avro single-object encoding")
    # One attempt: whoever checks is told what is, and waits as he likes.
    open_codecs(registry).open(result_topic=trial.settings.topics.output, attempts=1)
    return f"{registry.url} knows the result's schema"


def _device(trial: _Trial) -> str:
    import torch  # noqa: PLC0415 (seconds, which a person with a wrong setting need not wait)

    from worker.inference import threads  # noqa: PLC0415 (as above)
    from worker.inference.precision import find_device  # noqa: PLC0415

    device = find_device(trial.settings.model.device)
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{device}: {found.name}, {found.total_memory / 2**30:.0f} GiB"
    count, why = threads.choose(trial.settings.model.threads)
    return f"{device}, {count} thread{'' if count == 1 else 's'} ({why})" if device.type == "cpu" else str(device)


def _model(trial: _Trial) -> str:
    from worker.app import calibration_files, load_engine  # noqa: PLC0415 (imports torch)

    files = calibration_files(trial.settings)
    name = trial.settings.model.name
    if sys.stderr.isatty():
        say(f"loading {name}; a large model takes minutes")
    began_s = time.monotonic()
    engine = Start(lambda: False).run(lambda tell: load_engine(trial.settings, tell=tell))
    took_s = time.monotonic() - began_s
    offered = calibration_file.of_model(files, engine.identity).by_name
    known = f"; calibrations: {', '.join(sorted(offered))}" if offered else ""
    said = f"{name} at {engine.identity.revision}, {engine.precision} on {engine.device}; loaded in {took_s:.1f} s"
    return said + known


@contextmanager
def _connected(kind: Callable[[Properties], _Client], config: Properties, reports: Reports) -> Iterator[_Client]:
    client = connection.connect(kind, config, reports)
    try:
        yield client
    finally:
        if isinstance(client, Consumer):
            client.close()


# Name, the steps without which it cannot be tried, and the attempt: what it found, or an exception.
_STEPS: Final[tuple[tuple[str, tuple[str, ...], Callable[[_Trial], str]], ...]] = (
    ("schemas", (), _schemas),
    ("broker", (), _broker),
    ("topics", ("broker",), _topics),
    ("retention", ("broker",), _retention),
    ("transactions", ("broker",), _transactions),
    ("registry", ("schemas",), _registry),
    ("device", (), _device),
    ("model", ("device",), _model),
)
