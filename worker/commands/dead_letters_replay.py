"""`xnli-worker dead-letters replay`: dead letters become requests again, each exactly once.

A replay is a *campaign*: a selection of dead letters and a destination. It reads the dead-letter topic as a consumer
group of its own does, ``GROUP.replay.CAMPAIGN``, and its progress is that group's committed offsets. The records it
sends and the progress they stand for are one transaction, so a replay that was broken off, however hard, goes on where
it stood when the same command is run again, and doubles nothing. Run later, it takes what has come since.

Why a campaign and not one group for all replays: offsets say how far, and not which. A replay of ``--reason inference``
passes over the others, and one shared offset would hide those from the next replay, which asks for them. So
each selection has its own offsets; the campaign's name is by default a digest of selection, destination and dead-letter
topic. The price is said openly: *two campaigns whose selections overlap send what is in both twice*. The count of
replays does not prevent that, it only bounds loops. `--dry-run` shows what a command would send.

For offsets to be the whole truth, an answer about a dead letter must never change: selections know absolute times
only (see `select`), and a dead letter that is refused is passed over like one not selected. What each refusal names as
its mend is another selection, thus another campaign.

One replay of a campaign runs at a time: the transactional id is the group's name, so a second one fences the first, and
ends the transaction it left open without waiting for a time-out.

The broker forgets the progress of a campaign that has not been run for ``offsets.retention.minutes`` (seven days by
default), sooner than the dead letters themselves. Such a campaign begins anew, and says that it "begins".
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from worker import terminal
from worker.avro.codec import open_codecs
from worker.commands import connection, dead_letter_topic
from worker.commands.campaign import Campaign, campaign_of, is_meant
from worker.commands.connection import Reports, Waiting, say
from worker.commands.dead_letter_listing import Listing
from worker.commands.dead_letter_topic import DeadLetterTopic
from worker.commands.json_lines import write_tally
from worker.commands.progress import progress_bar
from worker.errors import BrokerAway, FatalError, Fenced, TransactionAborted, Unpublishable
from worker.kafka import client_config
from worker.kafka.client_config import Properties
from worker.kafka.embedded import is_embedded
from worker.kafka.fencing import RecoveringPublisher
from worker.kafka.reader import Extent
from worker.kafka.transactional import TransactionalPublisher
from worker.kafka.trial import Trial
from worker.messages import CommitBatch, Output, Partition, Position
from worker.rules.offset_metadata import TopicId, render
from worker.rules.replay import Cause, DeadLetterRecord, Refusal, Selection, replayed
from worker.settings import Settings
from worker.telemetry import log

_TIMEOUT_S: Final = 10.0
_RETRY_S: Final = 0.5
_POLL_S: Final = 0.002
# A transaction's worth: large enough that its fixed cost of some milliseconds does not matter, small enough to hold.
_RECORDS: Final = 500
_BYTES: Final = 16 * 1024 * 1024
# What aborts a transaction so often in a row is no passing trouble.
_MAX_ABORTS: Final = 5


@dataclass(slots=True)
class Tally:
    """What became of the dead letters that were read in this run."""

    replayed: int = 0
    refused: Counter[Cause] = field(default_factory=Counter)
    passed_over: int = 0  # not selected


def replay(
    config: Path | None,
    selection: Selection,
    *,
    to: str | None,
    max_replays: int,
    campaign: str | None,
    limit: int | None,
    rate: int | None,
    dry_run: bool,
    stop_requested: Callable[[], bool],
    asks: bool = False,
    as_json: bool = False,
) -> bool:
    """Send the selected dead letters that the campaign has not decided yet, up to where the topic ends now.

    The tally goes to stdout: JSON in a pipe, a sentence on a terminal; each refusal goes to stderr as a line.

    Args:
        config: The settings' file.
        selection: Which dead letters.
        to: Destination; None for the origin of each.
        max_replays: Dead letters replayed so often before are refused.
        campaign: Its name; None for one derived from selection and destination.
        limit: Send at most so many in this run.
        rate: Send at most so many a second.
        dry_run: Send nothing and decide nothing; list what would be sent.
        stop_requested: Ends the run between two transactions.
        asks: Ask the person at the terminal before all dead letters are sent, with no filter and no limit.
        as_json: JSON on a terminal too.

    Returns:
        True if no selected dead letter was refused and the run was not broken off; of a dry run always.

    Raises:
        SettingsError: the settings or the arguments are wrong.
        BrokerAway, TopicMissing: nothing could be read, or a destination is not there. What was sent is kept.
        FatalError: the broker has no transactions, or another run of the campaign has taken over.
    """
    settings = connection.load_settings(config)
    asked = campaign_of(settings, selection, to, max_replays, campaign)
    if asks and not dry_run and selection == Selection() and limit is None and not is_meant(settings, asked):
        return False
    log.configure("error", "console", sys.stderr)
    with dead_letter_topic.opened(settings, "replay", asked.group) as topic:
        if dry_run:
            return _rehearse(topic, settings, asked, limit, stop_requested, as_json=as_json)
        if is_embedded(topic.cluster().cluster_id):
            raise _no_transactions("the embedded broker of librdkafka only pretends to have them")
        run = _Run(topic, settings, asked, limit, rate, stop_requested)
        try:
            run.run()
        finally:
            run.close()
            _show(run.tally, asked, complete=run.complete, as_json=as_json)
    return run.complete and not run.tally.refused


def _starts(
    topic: DeadLetterTopic, asked: Campaign, extents: dict[int, Extent], current: TopicId | None
) -> tuple[dict[int, int], dict[int, int]]:
    """Where the campaign goes on in each partition, and its progress as far as it has any."""
    starts = topic.first_offsets(extents, asked.selection)
    progress = topic.progress(extents, current)
    for number, offset in progress.items():
        starts[number] = max(starts[number], offset)
    return starts, progress


def _rehearse(
    topic: DeadLetterTopic,
    settings: Settings,
    asked: Campaign,
    limit: int | None,
    stop_requested: Callable[[], bool],
    *,
    as_json: bool,
) -> bool:
    extents = topic.extents()
    starts, _ = _starts(topic, asked, extents, topic.topic_id())
    listing = Listing(open_codecs(settings.schema_registry), "to", as_json=as_json)
    count = Counter[bool]()
    for dead_letter in topic.read(starts, extents, stop_requested):
        if count[True] == limit:
            break
        if asked.selection.takes(dead_letter):
            decided = replayed(
                dead_letter,
                to=asked.to,
                inputs=settings.topics.input,
                max_replays=asked.max_replays,
                campaign=asked.name,
            )
            goes = isinstance(decided, Output)
            remark = decided.topic if isinstance(decided, Output) else f"refused: {decided.cause}"
            listing.write(dead_letter, remark)
            count[goes] += 1
    listing.close()
    say(f"campaign {asked.name} would send {count[True]:,} and refuse {count[False]:,}")
    return True


class _Run:
    """One run of a campaign. ``complete`` once everything up to the end, or to the limit, is decided."""

    def __init__(
        self,
        topic: DeadLetterTopic,
        settings: Settings,
        asked: Campaign,
        limit: int | None,
        rate: int | None,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.tally = Tally()
        self.complete = False
        self._topic = topic
        self._asked = asked
        self._inputs = settings.topics.input
        self._limit = limit
        self._rate = rate
        self._stop_requested = stop_requested
        # A rate is kept by small transactions: what is in one appears at once.
        self._records = _RECORDS if rate is None else min(_RECORDS, max(1, rate // 4))
        self._next_at_s = 0.0
        # What the next transaction will hold.
        self._outputs: dict[Position, Output] = {}
        self._bytes = 0
        self._behind: dict[Partition, int] = {}
        self._destinations: set[str] = set()
        # What this run found, and what it committed since.
        self._progress: dict[Partition, int] = {}
        self._metadata = ""  # beside each offset: which topic it belongs to
        self._publisher = self._open_publisher(client_config.producer(settings.kafka, transactional_id=asked.group))

    def _open_publisher(self, config: Properties) -> RecoveringPublisher:
        """Replaces its producer, as the worker's does, when a request of it may arrive late."""
        reader = self._topic.reader

        def committed(partitions: Sequence[Partition], timeout_s: float) -> dict[Partition, tuple[int, str]]:
            found = reader.committed([partition.number for partition in partitions], timeout_s)
            # Nothing is committed yet where a campaign begins.
            return {partition: found.get(partition.number, (-1, "")) for partition in partitions}

        def open_next(most_bytes: int | None) -> TransactionalPublisher:
            batches = {} if most_bytes is None else {"batch.size": most_bytes}
            return connection.connect(
                lambda config: TransactionalPublisher(config, reader, time.monotonic), config | batches, Reports()
            )

        def open_trial() -> Trial:
            return connection.connect(lambda config: Trial(config, reader, time.monotonic), config, Reports())

        def give_way(timeout_s: float) -> None:
            for number, (offset, _) in reader.committed(self._topic.require(self._topic.name), timeout_s).items():
                at = Partition(reader.topic, number)
                if offset not in {self._progress.get(at), self._behind.get(at)}:
                    raise Fenced("its progress was moved by another run")

        return RecoveringPublisher(open_next, open_trial, reader, committed, time.monotonic, give_way=give_way)

    def run(self) -> None:
        """Until the end, the limit or the stop."""
        if not self._start():
            return
        # Only now is the progress final: what a predecessor left open is ended, and nobody else can move it.
        extents = self._topic.extents()
        current = self._topic.topic_id()
        self._metadata = render(topic_id=current)
        starts, known = _starts(self._topic, self._asked, extents, current)
        committed = self._topic.reader.committed(list(extents), _TIMEOUT_S)
        self._progress = {Partition(self._topic.name, number): offset for number, (offset, _) in committed.items()}
        say(
            f"campaign {self._asked.name} {'goes on where it stood' if known else 'begins'}; "
            "broken off, it goes on when the same command is run again"
        )
        total = sum(max(0, extent.end - starts[number]) for number, extent in extents.items())
        with progress_bar("replaying", "sent", total) as advance:
            for dead_letter in self._topic.read(starts, extents, self._stop_requested):
                self._take(dead_letter)
                advance(1, self.tally.replayed)
                if self.tally.replayed + len(self._outputs) == self._limit:
                    break
                if len(self._outputs) >= self._records or self._bytes >= _BYTES:
                    self._publish()
            self._publish()
            self.complete = not self._stop_requested()
            # The markers of transactions were counted, and are never read.
            advance(total if self.complete else 0, self.tally.replayed)

    def close(self) -> None:
        """Abort what is open and disconnect."""
        self._publisher.close()

    def _start(self) -> bool:
        """Fence a predecessor. False if told to stop before the broker was there."""
        while not self._stop_requested():
            try:
                self._publisher.start(_TIMEOUT_S)
            except BrokerAway as away:
                say(f"{away}; waiting")
            except FatalError as error:
                raise _no_transactions(str(error.__cause__ or error)) from None
            else:
                return True
        return False

    def _take(self, dead_letter: DeadLetterRecord) -> None:
        position = dead_letter.record.position
        if not self._asked.selection.takes(dead_letter):
            self.tally.passed_over += 1
        else:
            decided = replayed(
                dead_letter,
                to=self._asked.to,
                inputs=self._inputs,
                max_replays=self._asked.max_replays,
                campaign=self._asked.name,
            )
            if isinstance(decided, Refusal):
                self._refuse(position, decided)
            else:
                if decided.topic not in self._destinations:
                    self._topic.require(decided.topic)
                    self._destinations.add(decided.topic)
                self._outputs[position] = decided
                self._bytes += len(decided.key or b"") + len(decided.value or b"")
        self._behind[position.partition] = position.offset + 1

    def _refuse(self, position: Position, refusal: Refusal) -> None:
        self.tally.refused[refusal.cause] += 1
        sys.stderr.write(f"{position.partition.number}:{position.offset}: {terminal.harmless(refusal.message)}\n")

    def _publish(self) -> None:
        """Send what is in hand and move the progress behind it. Does nothing once told to stop: it is still there."""
        self._pace(len(self._outputs))
        while True:
            try:
                self._transact(self._outputs, self._behind)
            except Unpublishable as error:
                for refused in (error, *error.others):
                    output = self._outputs.pop(refused.position)
                    self._refuse(refused.position, Refusal(Cause.TOO_LARGE, f"{output.topic} refuses it: {refused}"))
            else:
                break
        self._progress |= self._behind
        self._outputs, self._bytes, self._behind = {}, 0, {}

    def _transact(self, outputs: Mapping[Position, Output], behind: Mapping[Partition, int]) -> None:
        """One transaction, tried until the broker has answered. Raises Unpublishable or FatalError."""
        beside = dict.fromkeys(behind, self._metadata)
        release = CommitBatch(tuple(outputs.items()), behind, dict.fromkeys(behind, 0), beside)
        aborts, wait = 0, Waiting(say, _RETRY_S)
        while release and not self._stop_requested():
            try:
                while not self._publisher.publish(release, _TIMEOUT_S):
                    time.sleep(_POLL_S)
            except BrokerAway as away:
                wait(str(away))
            except TransactionAborted as aborted:
                aborts += 1
                if aborts == _MAX_ABORTS:
                    raise FatalError(f"{aborts} transactions were aborted in a row: {aborted}") from None
                say(f"{aborted}; trying again")
                time.sleep(_RETRY_S)
            except Fenced:
                raise Fenced(
                    f"another run of campaign {self._asked.name} has begun; it goes on where this one stood"
                ) from None
            else:
                self.tally.replayed += len(outputs)
                return

    def _pace(self, records: int) -> None:
        if self._rate is None:
            return
        while (left_s := self._next_at_s - time.monotonic()) > 0 and not self._stop_requested():
            time.sleep(min(left_s, 0.1))
        self._next_at_s = time.monotonic() + records / self._rate


def _no_transactions(why: str) -> FatalError:
    return FatalError(
        f"replay needs transactions, and there are none: {why}. Use Apache Kafka with its transaction coordinator, and "
        "allow this user the transactional ids and groups that begin with kafka.group_id"
    )


def _show(tally: Tally, asked: Campaign, *, complete: bool, as_json: bool) -> None:
    parts = [f"{tally.replayed:,} replayed"]
    parts += [f"{count:,} refused ({cause})" for cause, count in tally.refused.items()]
    parts += [f"{tally.passed_over:,} not selected"] if tally.passed_over else []
    shown = {
        "campaign": asked.name,
        "replayed": tally.replayed,
        "refused": dict(tally.refused),
        "passed_over": tally.passed_over,
        "complete": complete,
    }
    write_tally(shown, ", ".join(parts) + ("" if complete else "; broken off"), as_json=as_json)
