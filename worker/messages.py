"""The nouns that flow through the pipeline, in the order they appear. Imports nothing of ours.

``Record`` -> ``Job`` -> ``Batch`` -> ``BatchResult`` -> ``Output`` -> ``CommitBatch`` -> committed offset.
"""

# size: the one list of all that flows, in its order; to part it would hide the order.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar, dataclass_transform

import numpy as np
import numpy.typing as npt

Headers = tuple[tuple[str, bytes | None], ...]

_Kind = TypeVar("_Kind")


@dataclass_transform(frozen_default=True)
def value(kind: type[_Kind]) -> type[_Kind]:
    """A frozen, slotted dataclass, frozen for the type checker only.

    At run time ``frozen`` sets every field through ``object.__setattr__``: for the dozen objects of a message that took
    a fifteenth of all its time outside the model.
    """
    return dataclass(slots=True, unsafe_hash=True)(kind)


class Task(StrEnum):
    """What a request asks for."""

    CLASSIFY = "CLASSIFY"
    ENTAIL = "ENTAIL"
    EMBED = "EMBED"


class LongText(StrEnum):
    """What to do with a text longer than the model's window."""

    TRUNCATE = "TRUNCATE"
    WINDOW_MAX = "WINDOW_MAX"
    WINDOW_MEAN = "WINDOW_MEAN"


class Pooling(StrEnum):
    """How token states become one vector."""

    CLS = "CLS"
    MEAN = "MEAN"


class Partition(NamedTuple):
    """A topic and one of its partitions."""

    topic: str
    number: int


@value
class Position:
    """Where a record was read, and under which assignment of its partition.

    ``generation`` grows with every assignment of the partition to this process, so that a result which was
    computed under a former assignment can be told apart and dropped instead of committed.
    """

    partition: Partition
    offset: int
    generation: int


class Origin(NamedTuple):
    """Where a record was first read."""

    partition: Partition
    offset: int


@value
class Record:
    """A Kafka record as it was read. ``timestamp_ms`` is -1 where the broker gave none.

    ``attempt`` is the number, from 1, of the attempt to come. ``origin`` is where the record was first read, if it
    comes from a retry topic; None means here. Both are believed of retry topics alone, where no producer writes.
    ``unreadable`` says what of it cannot be read, and why; it is empty for all but a few. What can be is here.
    """

    position: Position
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    attempt: int = 1
    origin: Origin | None = None
    unreadable: str = ""


class LabelSetVersion(NamedTuple):
    """The label set that a request was completed from: its name, and its version, or its offset where it has none."""

    name: str
    version: str


class Span(NamedTuple):
    """A part of a text, as ``[start, end)`` in Unicode code points of the text as it was sent."""

    start: int
    end: int


@value
class Taxonomy:
    """Labels in a tree. ``parents`` has the index of each label's parent, or -1, and parents stand before children.

    ``beam`` is how many labels of a level are followed where labels compete (the best of them); where each is judged on
    its own, those are followed that pass.
    """

    parents: tuple[int, ...]
    beam: int


class Calibrator(Protocol):
    """Makes probabilities of a request's scores."""

    def __call__(self, labels: Sequence[int], scores: Sequence[float]) -> list[float | None]:
        """The calibrated score of each of some labels; None of those that it does not know.

        Args:
            labels: which of the request's: all of them where they compete.
            scores: one for each, in [0, 1].
        """


@value
class Request:
    """A valid request with every default filled in: what follows needs no settings to understand it.

    ``hypotheses`` are the finished sentences: for CLASSIFY one per label, ``template.format(label)``; for ENTAIL as
    the request gave them; for EMBED empty. ``labels`` is empty unless CLASSIFY.

    ``label_set`` is what the labels come from, or None where the request has its own. With a ``taxonomy`` ``labels``
    are all of its nodes. ``thresholds`` has one for each label where a set gives labels their own, after precedence;
    for a label with None, and where it is empty, ``threshold`` holds. A label whose neutral probability reaches
    ``abstain_on_neutral`` does not pass either. ``evidence`` is how many spans of the text are wanted for each label
    that passes. ``detected`` is the language that was found where the request asked for that. ``calibration`` is the
    name of the one that the label set wants. ``calibrator`` is None where no calibration knows any of the labels;
    thresholds are compared with what it makes of a score, where it does.
    """

    id: str
    task: Task
    text: str
    labels: tuple[str, ...]
    hypotheses: tuple[str, ...]
    multi_label: bool
    language: str | None
    top_k: int | None
    threshold: float | None
    long_text: LongText
    pooling: Pooling
    normalize: bool
    attributes: Mapping[str, str]
    label_set: LabelSetVersion | None = None
    taxonomy: Taxonomy | None = None
    thresholds: tuple[float | None, ...] = ()
    abstain_on_neutral: float | None = None
    evidence: int = 0
    detected: str | None = None
    calibration: str | None = None
    calibrator: Calibrator | None = None

    @property
    def is_apart(self) -> bool:
        """Whether each label is judged on its own: asked for, or because there is one alone."""
        return self.multi_label or len(self.labels) == 1


@value
class Row:
    """One sequence for the model, special tokens included, without padding.

    ``token_ids`` is a one-dimensional int32 array. ``segment_at`` is the index of the first token of the second
    segment (token type 1); it equals ``len(token_ids)`` for a single text. ``language_id`` is the checkpoint's language
    embedding, or None where the architecture has none.
    """

    token_ids: npt.NDArray[np.int32]
    segment_at: int
    language_id: int | None = None


@value
class Encoded:
    """A request as the model sees it: ``rows[h * windows + w]`` is hypothesis ``h`` over window ``w`` of the text.

    For EMBED there is one row per window. ``tokens`` is the sum of the rows' lengths: what the request costs at once.
    What a taxonomy's lower levels and evidence cost later nobody knows before, so ``rows`` are those of the top level;
    ``premise`` is then the text's own tokens, uncut. ``spans`` are the windows' places in the text, where there are
    several and the tokenizer tells. ``model`` is the one whose tokens these are, where models are swapped; None means
    that there is only one.
    """

    rows: tuple[Row, ...]
    windows: int
    truncated: bool
    tokens: int
    premise: npt.NDArray[np.int32] | None = None
    spans: tuple[Span, ...] = ()
    model: ModelIdentity | None = None


@value
class Job:
    """A request under way. It keeps its record, so that a dead letter needs no side buffer."""

    record: Record
    request: Request
    encoded: Encoded


class Trigger(StrEnum):
    """What closed a batch."""

    MESSAGES = "messages"
    TOKENS = "tokens"
    WAIT = "wait"
    DRAIN = "drain"
    LABEL_SET = "label_set"  # a newer version of a label set waits behind an older one, and would be next in it
    QUARANTINE = "quarantine"  # a record of a quarantined partition, alone


@value
class Batch:
    """Jobs that go through the model together, in the order they were admitted.

    ``tokens`` is the sum of what they cost at once (see `Encoded`): taxonomies and evidence may cost a multiple.
    ``opened_at_s`` is the monotonic time of the first admission. ``takes_calls``: calls over HTTP may share its
    forwards; not so where a death would be counted against one of its partitions.
    """

    jobs: tuple[Job, ...]
    tokens: int
    opened_at_s: float
    trigger: Trigger
    takes_calls: bool = True


@value
class Evidence:
    """A part of the text that speaks for a label: by how much its probability of entailment falls without it."""

    span: Span
    drop: float


class Step(NamedTuple):
    """A label on the way through a taxonomy, with its own score among its siblings."""

    label: str
    score: float


@value
class LabelScore:
    """A label, its score, and the three NLI probabilities behind it (neutral is 0 for two-class checkpoints).

    ``path`` leads through a taxonomy to the label, itself included; it is empty without one. ``evidence`` is strongest
    first. ``window`` is the part of a long text that decided, under WINDOW_MAX. ``calibrated`` is the probability that
    the score stands for, by the calibration in force; None where that does not know the label.
    """

    label: str
    score: float
    entailment: float
    neutral: float
    contradiction: float
    path: tuple[Step, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    window: Span | None = None
    calibrated: float | None = None


@value
class Classification:
    """Labels by falling score, after top_k and threshold. ``abstained``: no label passed.

    ``evidence_cut``: evidence was asked for and left out, or made coarser, for the limit on one request's work; or the
    tokenizer does not tell which part of a long text was read.
    """

    labels: tuple[LabelScore, ...]
    multi_label: bool
    abstained: bool
    evidence_cut: bool = False


@value
class Judgement:
    """The three NLI probabilities of one hypothesis given the text. ``window``: see `LabelScore`."""

    hypothesis: str
    entailment: float
    neutral: float
    contradiction: float
    window: Span | None = None


@value
class Entailment:
    """One judgement per hypothesis, in the request's order."""

    judgements: tuple[Judgement, ...]


@value
class Embedding:
    """A sentence vector: one-dimensional float32 of the model's hidden size."""

    vector: npt.NDArray[np.float32]
    pooling: Pooling
    normalized: bool


Outcome = Classification | Entailment | Embedding


@value
class ModelIdentity:
    """Name and resolved revision of the checkpoint, as results carry them."""

    name: str
    revision: str


class FaultKind(StrEnum):
    """Whose fault a failed job is; `worker.rules.retry` holds one policy for each."""

    MESSAGE = "message"
    TRANSIENT = "transient"
    OUT_OF_MEMORY = "out_of_memory"
    UNKNOWN = "unknown"


@value
class Fault:
    """Why a record has no result. Strings only, so that it can be kept, logged and written as headers."""

    kind: FaultKind
    reason: str  # a worker.errors.Reason value, should it become a dead letter
    stage: str
    error: str  # the exception's class name
    message: str
    stacktrace: str = ""


@value
class Answered:
    """A job and its outcome."""

    job: Job
    outcome: Outcome


@value
class Failed:
    """A job that has no outcome, and why."""

    job: Job
    fault: Fault


Finished = Answered | Failed


@value
class Work:
    """What a batch cost.

    ``rows`` were asked for; ``cache_hits`` of the distinct ones came from the cache, ``computed`` went through the
    model, with ``tokens`` tokens in ``slots`` slots (the difference is padding) in ``forwards`` forwards. ``shrinks``
    counts forwards that did not fit into memory and were tried again smaller; ``budget`` is how many token slots a
    forward may hold after that. ``failed`` rows were in passes that failed, and were computed again.
    """

    rows: int
    computed: int
    tokens: int
    slots: int
    cache_hits: int
    shrinks: int
    forwards: int
    seconds: float
    budget: int = 0
    failed: int = 0


@value
class BatchResult:
    """A batch and what became of each of its jobs, in its order.

    ``work`` sums all forwards, repeated ones too. ``splits`` counts how often a failed part of the batch was split.
    ``began_s`` and ``ended_s`` are monotonic times of the inference thread. ``beside`` has the headers of
    the calls over HTTP that shared its first forwards and have a trace.
    """

    batch: Batch
    finished: tuple[Finished, ...]
    work: Work
    splits: int
    began_s: float
    ended_s: float
    beside: tuple[Headers, ...] = ()


class OutputKind(StrEnum):
    """What a record to produce is. A record that leads to nothing, as a tombstone does, has no output."""

    RESULT = "result"
    RETRY = "retry"  # a copy in a retry topic
    DEAD_LETTER = "dead_letter"
    REQUEST = "request"  # a dead-letter record that is replayed


@value
class Output:
    """A record to produce. ``timestamp_ms`` None lets the producer stamp it.

    ``attempts`` is how many attempts led to it; ``reason`` is that of a dead letter, and empty for everything else.
    """

    kind: OutputKind
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int | None = None
    attempts: int = 1
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CommitBatch:
    """What is produced and committed together.

    ``outputs`` pairs each output, at most one a record, with the position whose record it answers. ``offsets`` maps
    each partition to the offset to commit: the one *after* the last record released, as Kafka counts. A tombstone has
    no output but moves the offset all the same. ``generations`` are the assignments the offsets belong to.
    ``metadata`` is what to commit beside an offset: see `worker.rules.offset_metadata`.
    """

    outputs: tuple[tuple[Position, Output], ...]
    offsets: Mapping[Partition, int]
    generations: Mapping[Partition, int]
    metadata: Mapping[Partition, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.offsets)
