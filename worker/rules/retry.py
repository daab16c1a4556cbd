"""What becomes of a record that failed: one pure decision, each branch argued."""

from __future__ import annotations

from dataclasses import dataclass

from worker import redaction
from worker.errors import OutOfDeviceMemory, Reason, Rejection, TransientError
from worker.messages import Fault, FaultKind

STACKTRACE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off. ``jitter`` 1 draws the delay from all of [0, cap) ("full jitter", Brooker 2015), 0 none."""

    max_attempts: int
    initial_s: float
    max_s: float
    multiplier: float
    jitter: float

    def delay_s(self, attempt: int, draw: float) -> float:
        """Seconds to wait after attempt number ``attempt`` (from 1), given a draw from [0, 1)."""
        # The exponent is bounded so that the ten-thousandth attempt of a long outage cannot overflow a float.
        cap = min(self.max_s, self.initial_s * self.multiplier ** min(attempt - 1, 64))
        return cap * (1.0 - self.jitter + self.jitter * draw)


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again, not before this moment of the monotonic clock."""

    not_before_s: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Give the record up, for this reason."""

    reason: Reason


def decide(policy: RetryPolicy, fault: Fault, attempt: int, now_s: float, draw: float) -> Retry | DeadLetter:
    """Decide on a record whose attempt number ``attempt`` (from 1) ended in ``fault``.

    A fault reaches this function only when it stands alone: a batch that fails is split first, so what is decided
    here never falls on a neighbour.
    """
    match fault.kind:
        case FaultKind.MESSAGE:
            # Nothing about the world has to change for it to fail again: its bytes, or what they ask for, are wrong.
            return DeadLetter(Reason(fault.reason))
        case FaultKind.OUT_OF_MEMORY:
            # The engine has shrunk its budget to this one row and it still did not fit: it will not fit next time.
            return DeadLetter(Reason.INFERENCE)
        case FaultKind.TRANSIENT if attempt >= policy.max_attempts:
            # An outage is waited for where it is met (the loop, the device) and never counted. What arrives here is a
            # record that met one on every single attempt while its neighbours came through.
            return DeadLetter(Reason.EXHAUSTED)
        case FaultKind.UNKNOWN if attempt >= policy.max_attempts:
            return DeadLetter(Reason.INFERENCE)
        case _:
            return Retry(now_s + policy.delay_s(attempt, draw))


def fault_of(error: BaseException, stage: str, stacktrace: str = "") -> Fault:
    """Whose fault an exception is: the one classifier.

    - `Rejection`: the message's own, and it says why.
    - `OutOfDeviceMemory`: raised by the engine for a single row at its smallest budget.
    - `TransientError`: something is away; the message is innocent.
    - `MemoryError`: the host's memory; another moment may have more of it.
    - everything else: unknown. It may be a bug that this text provokes, or a device gone bad; attempts tell.
    """
    name, message = type(error).__name__, redaction.in_text(str(error))
    stacktrace = redaction.in_text(stacktrace)[-STACKTRACE_BYTES:]
    match error:
        case Rejection():
            return Fault(FaultKind.MESSAGE, error.reason, error.stage, name, message)
        case OutOfDeviceMemory():
            return Fault(FaultKind.OUT_OF_MEMORY, Reason.INFERENCE, stage, name, message, stacktrace)
        case TransientError() | MemoryError():
            return Fault(FaultKind.TRANSIENT, Reason.EXHAUSTED, stage, name, message, stacktrace)
        case _:
            return Fault(FaultKind.UNKNOWN, Reason.INFERENCE, stage, name, message, stacktrace)
