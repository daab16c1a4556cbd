"""The texts that `adapt` works with: examples to learn from, others to measure, and what is rehearsed."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from worker.avro import json_request
from worker.avro.request import request as checked_request
from worker.commands import request_source
from worker.commands.labelled import Given, Labelled
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
    """Where the other texts stand: ``test`` has examples of the labels to learn, ``unseen`` of others.

    ``rehearsal`` has requests. The demo's sample messages stand in for the last two.
    """

    test: str | None = None
    unseen: str | None = None
    rehearsal: Path | None = None


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts, as requests by the rules of the stream."""

    examples: list[Asked]
    test: list[Asked]
    unseen: list[Asked]
    rehearsal: list[Request]


def read(given: Given, files: Files) -> tuple[Settings, Texts]:
    """The settings that hold, and everything that is read, checked.

    Args:
        given: the examples of the labels to learn, and what was typed of the model.
        files: the other texts.

    Raises:
        SettingsError: a file cannot be read, holds what is no example or no request, or labels in a tree.
    """
    examples_ = _labelled(given)
    settings = examples_.settings
    same = replace(given, model=settings.model.name)
    if not given.labels and given.label_set is None:  # a test in which a label does not occur is asked about it too
        learnt = dict.fromkeys(label for one in examples_.asked for label in one.request.labels)
        same = replace(same, labels=json.dumps(list(learnt)))
    test = [] if files.test is None else _labelled(replace(same, file=files.test)).asked
    rehearsed, measured = _samples()
    if files.rehearsal is None and files.unseen is None:  # what is rehearsed measures nothing
        rehearsed, measured = rehearsed[::2], measured[1::2]
    if files.rehearsal is None:
        rehearsal = [_request(fields, settings) for fields in rehearsed]
    else:
        rehearsal = _requests(files.rehearsal, settings)
    if files.unseen is None:
        known = examples.completed([one for one in measured if one is not None], examples.Defaults())
        unseen = scoring.asked(known, defaults_of(settings, Pooling.MEAN, None), limits_of(settings))
    else:
        unseen = _labelled(Given(files.unseen, config=given.config, model=settings.model.name)).asked
    return settings, Texts(examples_.asked, test, unseen, rehearsal)


def _labelled(given: Given) -> Labelled:
    found = Labelled(given, lambda: False)
    for one in found.asked:
        if one.request.taxonomy is not None:
            raise SettingsError(
                f"{one.example.place}: its labels are a tree, of which it is not known what contradicts what; name "
                "them as a list"
            )
    return found


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
