"""The texts that `adapt` works with: examples to learn from, others to measure, and what is rehearsed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from worker.avro import json_request
from worker.avro.request import request as checked_request
from worker.commands import request_source
from worker.demo.play import SAMPLES
from worker.endpoint import defaults_of, limits_of
from worker.errors import Rejection, SettingsError
from worker.learn import examples, scoring
from worker.learn.examples import EXPECTED, Example
from worker.learn.scoring import Asked
from worker.messages import Pooling, Request, Task
from worker.settings import Settings

_SHOWN: Final = 5  # findings that are told at once


@dataclass(frozen=True, slots=True)
class Files:
    """Where the texts stand: ``examples`` and ``test`` of the labels to learn, ``unseen`` of others.

    ``rehearsal`` has requests. The demo's sample messages stand in for the last two.
    """

    examples: Path
    test: Path | None = None
    unseen: Path | None = None
    rehearsal: Path | None = None


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts, as requests by the rules of the stream."""

    examples: list[Asked]
    test: list[Asked]
    unseen: list[Asked]
    rehearsal: list[Request]


def read(files: Files, meaning: examples.Defaults, settings: Settings) -> Texts:
    """Everything, checked.

    Args:
        files: where it stands.
        meaning: what examples of the labels to learn mean that do not say.
        settings: what requests mean that do not say, and what they may be.

    Raises:
        SettingsError: a file cannot be read, or holds what is no example or no request.
    """
    wanted = _asked(examples.read(files.examples, meaning), settings)
    test = [] if files.test is None else _asked(examples.read(files.test, meaning), settings)
    rehearsed, measured = _samples()
    if files.rehearsal is None and files.unseen is None:  # what is rehearsed measures nothing
        rehearsed, measured = rehearsed[::2], measured[1::2]
    if files.rehearsal is None:
        rehearsal = [_request(fields, settings) for fields in rehearsed]
    else:
        rehearsal = _requests(files.rehearsal, settings)
    unseen = examples.completed(list(filter(None, measured)), examples.Defaults())
    if files.unseen is not None:
        unseen = examples.read(files.unseen)
    return Texts(wanted, test, _asked(unseen, settings), rehearsal)


def _asked(found: list[Example], settings: Settings) -> list[Asked]:
    return scoring.asked(found, defaults_of(settings, Pooling.MEAN, None), limits_of(settings))


def _samples() -> tuple[list[dict[str, Any]], list[Example | None]]:
    """The demo's messages as requests, and each as an example, or None where it is no classification."""
    requests: list[dict[str, Any]] = []
    labelled: list[Example | None] = []
    for number, line in enumerate(SAMPLES.read_text(encoding="utf-8").splitlines(), 1):
        fields = json.loads(line)
        fields["language"] = fields["attributes"]["language"]  # for models with an embedding of each
        requests.append(fields)
        place = f"{SAMPLES.name}:{number}"
        is_example = fields.get("task", Task.CLASSIFY) == Task.CLASSIFY
        labelled.append(
            examples.example(fields, examples.Defaults(), place=place, otherwise=place) if is_example else None
        )
    return requests, labelled


def _requests(file: Path, settings: Settings) -> list[Request]:
    """The requests of a file, as `send` takes them. What examples say beyond a request is passed over."""
    found: list[Request] = []
    findings: list[str] = []
    try:
        with file.open("rb") as source:
            for given in request_source.read(source, ()):
                try:
                    if given.refused is not None:
                        raise given.refused
                    if given.fields is not None:
                        fields = {name: value for name, value in given.fields.items() if name != EXPECTED}
                        found.append(_request({"id": f"line-{given.line}"} | fields, settings))
                except Rejection as refused:
                    findings.append(f"--rehearsal {file}:{given.line}: {refused}")
                    if len(findings) >= _SHOWN:
                        break
    except OSError as error:
        raise SettingsError(
            f"--rehearsal {file}: {error.strerror}; name a file of requests, as send takes them"
        ) from None
    if findings:
        raise SettingsError("\n".join(findings))
    if not found:
        raise SettingsError(f"--rehearsal {file}: holds no requests; write what send takes, or leave it out")
    return found


def _request(fields: dict[str, Any], settings: Settings) -> Request:
    """Raises Rejection."""
    return checked_request(json_request.request(fields), defaults_of(settings, Pooling.MEAN, None), limits_of(settings))
