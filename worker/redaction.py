"""Secrets, taken out of everything that this process writes for people: logs, messages, tracebacks, dead letters.

No one way finds them all, so there are three. *By name*: what stands under ``sasl.password`` or behind ``password=``.
*By shape*: what stands before the ``@`` of an address. *By value*: `know` is told what the settings hold, and whoever
repeats it, librdkafka or a registry, is cut short. Imports nothing of ours, so that every part can use it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TextIO, cast
from urllib.parse import quote, unquote

REDACTED: Final = "[redacted]"

# Names whose value is a secret whatever its type: librdkafka's sasl.*, ssl.key.*, ssl.keystore.* and oauth properties,
# the registry's basic.auth.user.info, HTTP's Cookie.
_SENSITIVE: Final = (
    r"pass?w(?:or)?d|passphrase|secret|credential|jaas|cookie|user[._-]?info|oauthbearer[._-]config"
    r"|(?:api|access|private|ssl)[._-]?key|key[._-]?pem"
)
# "token" is also what a model counts: under such a name text is a secret and a number is not.
_COUNTED: Final = r"(?<!max_)tokens?(?![a-z])"
# Of the same family, and no secret: what an error must be able to show.
_PUBLIC_NAME: Final = re.compile(
    r"(?<![a-z])(?:location|ur[il]|endpoint|method|type|mechanisms?|source|enabled?|provider|scope|client[._-]?id|ca"
    r"|certificate)$",
    re.IGNORECASE,
)
_SENSITIVE_NAME: Final = re.compile(f"{_SENSITIVE}|auth", re.IGNORECASE)
_TOKEN_NAME: Final = re.compile(_COUNTED, re.IGNORECASE)
# The same names inside a sentence, as `name=value` or `name: value`. "auth" alone, for sentences speak of it: "SASL
# authentication error: ...". Repetitions are bounded, so time is linear.
_NAMED: Final = re.compile(
    rf"(?P<name>(?:{_SENSITIVE}|{_COUNTED}|(?<![a-z])auth(?:orization)?(?![a-z_]))[\w.-]{{0,32}})"
    r"(?P<between>\\?[\"']?\s{0,4}[=:]\s{0,4}\\?[\"']?(?:(?:basic|bearer)\s{1,4})?)(?P<value>[^\s\"',;&]+)",
    re.IGNORECASE,
)
# Each of those names holds one of these: to look for them first takes a microsecond in place of fifty.
_HINTS: Final = ("pas", "secret", "credential", "jaas", "cookie", "info", "auth", "key", "token")
# user:password@ of an address, with a scheme or without. A password may hold any character but a blank or a quote, a
# "/", "#", or "@" too, so all up to the last @ is taken.
_IN_ADDRESS: Final = re.compile(r"(://)[^\s\"'<>]{1,1024}@|(?<![\w.-])[\w.+%-]{1,256}:(?!//)[^\s\"'<>]{1,1024}@")

_DEEPEST: Final = 6  # nesting beyond this is redacted whole: a log line is no place for it, and a cycle would never end

# A shorter secret is none, and to take it out would make every line unreadable.
_LEAST_CHARS: Final = 4
# One that is shorter than this goes only where it stands alone: "kafka" is a word too.
_ALONE_BELOW_CHARS: Final = 8
_LEAST_LINE_CHARS: Final = 16  # of a key in PEM
# What stands under sasl.oauthbearer.* as well, and no secret.
_WORDS: Final = frozenset({"true", "false", "none", "null"})

_known: tuple[tuple[str, re.Pattern[str]], ...] = ()


def know(secrets: Iterable[str]) -> None:
    """Take these out of all text from now on, in every way in which they may be written; they replace the former."""
    spelt = {form for secret in secrets for form in _spellings(secret) if len(form) >= _LEAST_CHARS} - _WORDS
    global _known  # noqa: PLW0603 (one process has one set of settings, and whatever writes must know them)
    _known = tuple((form, _anywhere(form)) for form in sorted(spelt, key=len, reverse=True))


def _spellings(secret: str) -> Iterator[str]:
    for form in dict.fromkeys((secret, secret.strip(), *_long_lines(secret))):
        yield form
        yield repr(form)[1:-1]
        yield json.dumps(form)[1:-1]
        yield quote(form, safe="", errors="replace")
        yield quote(form, errors="replace")
        yield unquote(form)
        yield base64.b64encode(form.encode("utf-8", "replace")).decode()


def _long_lines(secret: str) -> Iterator[str]:
    lines = secret.splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _LEAST_LINE_CHARS and not line.startswith("-----"))


def _anywhere(form: str) -> re.Pattern[str]:
    exact = re.escape(form)
    return re.compile(rf"(?<!\w){exact}(?!\w)" if len(form) < _ALONE_BELOW_CHARS else exact)


def secrets_of(tables: object, *, name: str = "") -> Iterator[str]:
    """What of settings, as they were read and before anything is checked, is a secret.

    Args:
        tables: A value or a table of them, however deep.
        name: The name it stands under.
    """
    if isinstance(tables, Mapping):
        for inner, held in tables.items():
            yield from secrets_of(held, name=f"{name}.{inner}" if is_sensitive(name) else str(inner))
    elif isinstance(tables, (list, tuple)):
        for held in tables:
            yield from secrets_of(held, name=name)
    elif isinstance(tables, str):
        yield from (tables,) if is_sensitive(name) else _in_addresses(tables)
    elif not isinstance(tables, bool) and tables is not None and _is_sensitive_of_any_type(name):
        yield str(tables)


def _in_addresses(text: str) -> Iterator[str]:
    """What stands before the @ of an address. A comma may part two of them, or belong to a password."""
    for address in dict.fromkeys((text, *text.split(","))):
        before = address.rpartition("@")[0].strip()
        _, scheme, behind = before.partition("://")
        user_info = behind if scheme else before
        if scheme or ":" in user_info:
            password = user_info.partition(":")[2]
            yield from (user_info, password, *password.split(","))


def is_sensitive(name: str) -> bool:
    """Whether text under this name is a secret."""
    return (_SENSITIVE_NAME.search(name) or _TOKEN_NAME.search(name)) is not None and not _PUBLIC_NAME.search(name)


def _is_sensitive_of_any_type(name: str) -> bool:
    return _SENSITIVE_NAME.search(name) is not None and not _PUBLIC_NAME.search(name)


def in_text(text: str) -> str:
    """A text without secrets."""
    for form, anywhere in _known:
        if form in text:
            text = anywhere.sub(REDACTED, text)
    if "@" in text:
        text = _IN_ADDRESS.sub(_without_user, text)
    lowered = text.lower()
    return _NAMED.sub(_without_value, text) if any(hint in lowered for hint in _HINTS) else text


def _without_user(found: re.Match[str]) -> str:
    return f"{found[1] or ''}{REDACTED}@"


def _without_value(found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    is_public = _PUBLIC_NAME.search(name) or (value.isdigit() and _TOKEN_NAME.search(name))
    return found[0] if is_public else f"{name}{found['between']}{REDACTED}"


def in_value(name: str, value: Any, depth: int = 0) -> Any:
    """A value as it may be shown under ``name``, at any depth. What is no plain value is shown by its ``repr``."""
    if value is None or isinstance(value, bool):
        return value
    if _is_sensitive_of_any_type(name):
        return REDACTED
    if isinstance(value, (int, float)):
        return value
    if is_sensitive(name) or depth > _DEEPEST:
        return REDACTED
    if isinstance(value, str):
        return in_text(value)
    if isinstance(value, Mapping):
        return {inner: in_value(str(inner), held, depth + 1) for inner, held in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [in_value("", held, depth + 1) for held in value]
    # An exception or a client object may carry what it was configured with.
    return in_text(repr(value))


class RedactedStream:
    """A text stream without secrets: in front of stderr, so that no message, traceback or progress bar goes around.

    What is not writing (``flush``, ``isatty``, ``fileno``, ``buffer``) is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, and say that all of it was written."""
        self._stream.write(in_text(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them one by one."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guarded(stream: TextIO) -> TextIO:
    """The stream with a `RedactedStream` in front of it, unless there is one."""
    return stream if isinstance(stream, RedactedStream) else cast("TextIO", RedactedStream(stream))


def bare(stream: TextIO) -> TextIO:
    """The stream behind a `RedactedStream`, for a writer that takes secrets out by itself."""
    return stream._stream if isinstance(stream, RedactedStream) else stream  # noqa: SLF001 (of this module)
