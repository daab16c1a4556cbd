"""Logs: one JSON object a line, or a console for people.

Everything ends in one handler on the root logger: our own structlog calls, the standard library's loggers, Python's
warnings, and librdkafka's lines (its clients get the logger of that name, and write within ``poll``, on the caller's
thread). The last step before rendering takes secrets out, so it sees all that is written, tracebacks included.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from worker import redaction, streams, terminal
from worker.errors import SettingsError

LogFormat = Literal["auto", "json", "console"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# These report every HTTP exchange at INFO: a line for each schema lookup or model file tells an operator nothing.
_CHATTY = ("httpcore", "httpcore2", "httpx", "httpx2", "urllib3")

_LIBRDKAFKA = "librdkafka"  # name of the logger that `worker.kafka` gives to its clients

REPEAT_S: Final = 30.0
_KINDS = 1000  # of trouble remembered: enough for every broker of a large cluster
_FIGURES = re.compile(r"\d+")
_OF_SEVERAL_LINES: Final = ("exception", "stack")
_FIRST = ("event", "level", "timestamp")


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: replace secrets by ``[redacted]``, by the name of their key or by their shape inside text.

    Keys that name a password, secret, credential, authentication or key material lose their value, at any depth. Keys
    that contain "token" lose text but keep numbers. Strings lose the value of ``password=...`` and its like, and the
    user part of URLs.
    """
    return {key: redaction.in_value(key, value) for key, value in event.items()}


def _name_librdkafka(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Take apart what confluent-kafka logs as ``"%s [%s] %s", facility, client, text``, to be searched by field."""
    arguments = event.pop("positional_args", ())
    if event.get("logger") == _LIBRDKAFKA and isinstance(arguments, tuple) and len(arguments) == 3:
        event["facility"], event["client"], event["event"] = arguments
    return event


def _harmless(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """For the console: no text of a stranger steers the terminal, or begins a line that looks like ours."""
    return {
        key: value
        if not isinstance(value, str)
        else terminal.harmless_lines(value)
        if key in _OF_SEVERAL_LINES
        else terminal.harmless(value)
        for key, value in event.items()
    }


def _json(event: object, **options: Any) -> str:
    # ASCII escapes on purpose: right in any encoding of the stream, and no line separator of Unicode splits a line.
    return terminal.escaped(json.dumps(event, **options))  # DEL is ASCII too


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What a person looks for first comes first."""
    return {name: event[name] for name in _FIRST if name in event} | dict(event)


class Repeats:
    """Lets trouble of one kind through once in `REPEAT_S`, and counts what it holds back meanwhile.

    While all brokers are away, librdkafka tries each of its addresses twenty times a second and reports every attempt.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}  # when the last one went through, and how many did not since

    def admit(self, kind: str) -> int | None:
        """How many were held back since the last of this kind; None if this one is held back too."""
        now_s = self._clock()
        last_s, held = self._kinds.get(kind, (-REPEAT_S, 0))
        if now_s - last_s < REPEAT_S:
            self._kinds[kind] = last_s, held + 1
            return None
        if len(self._kinds) >= _KINDS:
            self._kinds.clear()
        self._kinds[kind] = now_s, 0
        return held


class _Seldom(logging.Filter):
    """Repeats of librdkafka's own lines: the same but for its figures, from the same client."""

    def __init__(self) -> None:
        super().__init__()
        self._repeats = Repeats()

    def filter(self, record: logging.LogRecord) -> bool:
        return self._repeats.admit(_FIGURES.sub("", record.getMessage())) is not None


class _SeldomTraces(_Seldom):
    """The same for OpenTelemetry, whose exporter reports each attempt at a collector that is away."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.name.startswith("opentelemetry") or super().filter(record)


class _Handler(logging.StreamHandler[TextIO]):
    """Says how many lines a reader has missed who stood still for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        if (ours := streams.diagnostics_of(self.stream)) is not None and (count := ours.take_dropped()):
            missed = "%d lines were dropped here: nobody read them in time"
            super().emit(logging.LogRecord("worker.log", logging.WARNING, __file__, 0, missed, (count,), None))
        super().emit(record)


def _is_json(log_format: LogFormat, stream: TextIO) -> bool:
    if log_format not in {"auto", "json", "console"}:
        raise SettingsError(f"log.format: {log_format!r} is no format; use auto, json or console")
    return log_format == "json" or (log_format == "auto" and not stream.isatty())


def _hold_back(threshold: int, handler: logging.Handler) -> None:
    """Let libraries tell what an operator can use, and repeat themselves no more often than that."""
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING if threshold > logging.DEBUG else logging.DEBUG)
    logging.getLogger(_LIBRDKAFKA).setLevel(logging.NOTSET)  # the root's level holds; a command may have silenced it
    is_terse = threshold > logging.DEBUG
    logging.getLogger(_LIBRDKAFKA).filters[:] = [_Seldom()] if is_terse else []
    handler.filters[:] = [_SeldomTraces()] if is_terse else []


def configure(level: str, log_format: LogFormat, stream: TextIO) -> None:
    """Send every log line of this process to ``stream``. May be called again; the last call holds.

    Args:
        level: debug, info, warning or error; lines below it are not built.
        log_format: "json" for machines, "console" for people (coloured only where ``stream`` is a terminal); "auto":
            console on a terminal, else JSON.
        stream: a text stream, as a rule stderr: stdout belongs to the commands' output.

    Raises:
        SettingsError: ``level`` or ``log_format`` is none of these.
    """
    threshold = _LEVELS.get(level.lower())
    if threshold is None:
        raise SettingsError(f"log.level: {level!r} is no level; use one of {', '.join(_LEVELS)}")
    is_json = _is_json(log_format, stream)

    named: list[Processor] = [
        structlog.contextvars.merge_contextvars,  # the ids of the trace that something is part of
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks become plain text here. structlog's richer ones print local variables, and those hold passwords.
    finish: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
        _in_order,
    ]
    if is_json:
        finish.append(structlog.processors.JSONRenderer(serializer=_json))
    else:
        finish.append(_harmless)
        finish.append(
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), sort_keys=False, exception_formatter=structlog.dev.plain_traceback
            )
        )

    handler = _Handler(redaction.bare(stream))
    foreign = [*named, _name_librdkafka]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=finish, foreign_pre_chain=foreign, pass_foreign_args=True)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    _hold_back(threshold, handler)
    logging.captureWarnings(capture=True)

    structlog.configure(
        processors=[*named, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # a second configure must reach loggers that already spoke
    )
