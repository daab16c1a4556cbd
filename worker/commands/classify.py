"""`xnli-worker classify`: texts and labels in, scores out; no broker."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from worker import language_detection, screen, terminal
from worker import settings as settings_module
from worker.avro import json_request
from worker.avro.request import AUTO, Defaults, Limits
from worker.avro.request import request as checked_request
from worker.commands.connection import say
from worker.commands.json_lines import is_wanted
from worker.commands.remote import RemoteWorker
from worker.commands.request_source import labels_of, labels_of_file
from worker.errors import FatalError, Rejection, SettingsError
from worker.learn import calibration_file
from worker.messages import Classification, Encoded, Evidence, LabelScore, ModelIdentity, Outcome, Pooling, Request
from worker.screen import Cell, Screen
from worker.settings import Settings
from worker.telemetry import log

_BAR_COLUMNS: Final = 30
_LABEL_COLUMNS: Final = 32
_DEMO: Final = "demo"
_CONTEXT: Final = 40  # letters of the text that are shown on either side of evidence
# Longer than any limit on texts. Without an end of its own a line would fill the memory: /dev/zero has none.
_LINE_BYTES: Final = 64 * 1024 * 1024

# Makes an outcome of a request; raises Rejection or SettingsError.
Answer = Callable[[Request], tuple[Encoded, Outcome, ModelIdentity]]


def classify(
    text: str | None,
    config: Path | None,
    *,
    labels: str,
    multi_label: bool,
    template: str | None,
    evidence: int = 0,
    as_json: bool,
    label_set: Path | None = None,
    url: str | None = None,
) -> bool:
    """Score labels for a text, or for each line of stdin. False if one of several could not be scored.

    Args:
        text: The text; None and "-" mean stdin, a text a line.
        config: The settings' file; without ``model.name`` in it the demo's checkpoint is taken, and stderr says so.
        labels: With commas between, or a JSON array.
        multi_label: Score each label by itself.
        template: In place of ``model.hypothesis_template``.
        evidence: How many spans of the text to show for each label.
        as_json: JSON on a terminal too.
        label_set: A file of labels, in place of ``labels``.
        url: Of a running worker that answers in place of a model here.

    Raises:
        SettingsError: the settings, the checkpoint or the only text will not do.
        FatalError: stdin holds a line without end.
    """
    presets = {"kafka": {"bootstrap_servers": "none"}, "model": {"name": _DEMO}}
    settings = settings_module.load(config, defaults=presets)
    is_preset = not any("name" in source.tables.get("model", {}) for source in settings_module.given(config))
    log.configure("warning", "console", sys.stderr)
    wanted = {
        "id": "text",
        "labels": labels_of(labels) if label_set is None else labels_of_file(label_set),
        "multi_label": multi_label,
        "hypothesis_template": template,
        "evidence": evidence,
    }
    only = None if text in {None, "-"} else _request(wanted | {"text": str(text)}, settings)
    if is_preset and url is None:
        say("model.name is not set: the demo's small checkpoint answers")
    answer = _here(settings) if url is None else _there(url, settings, wanted)
    is_whole = True
    for number, given in _lines() if only is None else [(1, b"")]:
        try:
            request = only or _request(wanted | {"text": _decoded(number, given)}, settings)
            encoded, outcome, model = answer(request)
        except (Rejection, SettingsError) as refused:
            if only is not None:
                raise SettingsError(str(refused)) from None
            say(str(refused))
            is_whole = False
            continue
        if isinstance(outcome, Classification):  # which is what was asked for
            _show(request, encoded, outcome, model, as_json=as_json)
    return is_whole


def _here(settings: Settings) -> Answer:
    """The model of the settings, in this process."""
    from worker.app import calibration_files, load_engine  # noqa: PLC0415 (torch: wrong typing is told before)

    files = calibration_files(settings)
    engine = load_engine(settings)
    calibration = calibration_file.of_model(files, engine.identity).find(None)

    def answer(request: Request) -> tuple[Encoded, Outcome, ModelIdentity]:
        asked = request if calibration is None else calibration.applied(request)
        encoded = engine.encode(asked)
        return encoded, engine.run([(asked, encoded)])[0][0], engine.identity

    return answer


def _there(url: str, settings: Settings, wanted: dict[str, Any]) -> Answer:
    """A worker that runs elsewhere."""
    worker = RemoteWorker(url, settings.http.tokens)
    return lambda request: worker.classify(wanted | {"text": request.text})


def _lines() -> Iterator[tuple[int, bytes]]:
    """The lines of stdin that hold something, and their numbers."""
    if sys.stdin is None:
        raise SettingsError("stdin is closed; give the text as an argument, or a text a line on stdin")
    if sys.stdin.isatty():
        say("reading texts from the terminal, one a line; end with Ctrl-D")
    number = 0
    while line := sys.stdin.buffer.readline(_LINE_BYTES + 1):
        number += 1
        if len(line) > _LINE_BYTES:
            raise FatalError(f"stdin:{number}: a line of more than {_LINE_BYTES:,} bytes is no text")
        if line.strip():
            yield number, line


def _decoded(number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise SettingsError(f"stdin:{number}: no UTF-8 ({error.reason} at byte {error.start}); convert it") from None


def _request(datum: dict[str, Any], settings: Settings) -> Request:
    """The request that a message with these fields would be. Raises SettingsError."""
    model, limits = settings.model, settings.limits
    detect = language_detection.detector(is_needed=model.detects_language)
    try:
        return checked_request(
            json_request.request(datum),
            Defaults(
                model.hypothesis_template,
                model.long_text,
                Pooling.MEAN,
                model.normalize,
                detect=detect,
                language=AUTO if model.detects_language else None,
            ),
            Limits(limits.max_text_chars, limits.max_labels, limits.max_label_chars, limits.max_message_bytes),
        )
    except Rejection as refused:
        raise SettingsError(str(refused)) from None


def _show(request: Request, encoded: Encoded, outcome: Classification, model: ModelIdentity, *, as_json: bool) -> None:
    if is_wanted(as_json):
        shown = {
            "text": request.text,
            "labels": [
                {
                    "label": score.label,
                    "score": round(score.score, 6),
                    **({} if score.calibrated is None else {"calibrated": round(score.calibrated, 6)}),
                    "entailment": round(score.entailment, 6),
                    "neutral": round(score.neutral, 6),
                    "contradiction": round(score.contradiction, 6),
                    **({"evidence": _quoted(request.text, score)} if request.evidence else {}),
                }
                for score in outcome.labels
            ],
            "multi_label": outcome.multi_label,
            **({"evidence_cut": outcome.evidence_cut} if request.evidence else {}),
            "truncated": encoded.truncated,
            "model": {"name": model.name, "revision": model.revision},
        }
        sys.stdout.write(json.dumps(shown, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    out = Screen()
    out.row([Cell(terminal.harmless(request.text), screen.BOLD)], [])
    shown_labels = [terminal.harmless(score.label) for score in outcome.labels]
    columns = min(_LABEL_COLUMNS, max(map(screen.width, shown_labels), default=0))
    for rank, (label, score) in enumerate(zip(shown_labels, outcome.labels, strict=True)):
        probable = score.score if score.calibrated is None else score.calibrated
        likely = probable >= 0.5 if outcome.multi_label else rank == 0
        style = screen.GREEN if likely else ""
        bar = out.bar(probable, _BAR_COLUMNS)
        raw = "" if score.calibrated is None else f"  raw {score.score:.3f}"
        out.row(["", Cell(label, style), f"{probable:.3f}", Cell(f"{bar}{raw}", style)], [0, columns, 5])
        for found in score.evidence:
            out.line(f"{'':{screen.GAP + columns}}  {-found.drop:+.3f}  {_in_context(out, request.text, found, style)}")
    notes = ["each label by itself: the scores need not add up to 1"] if outcome.multi_label else []
    notes += ["not all evidence was looked for"] if outcome.evidence_cut else []
    notes += ["the text is longer than the model's window: its end was not read"] if encoded.truncated else []
    for note in notes:
        out.line(f"  {note}", screen.DIM)
    sys.stdout.flush()


def _quoted(text: str, score: LabelScore) -> list[dict[str, Any]]:
    """The evidence of a label in JSON, with the words that it means."""
    return [
        {
            "start": found.span.start,
            "end": found.span.end,
            "drop": round(found.drop, 6),
            "text": text[slice(*found.span)],
        }
        for found in score.evidence
    ]


def _in_context(out: Screen, text: str, found: Evidence, style: str) -> str:
    """Evidence with what stands around it, in one line."""
    start, end = found.span
    before, after = text[max(0, start - _CONTEXT) : start], text[end : end + _CONTEXT]
    return out.marked(
        ("…" if start > _CONTEXT else "") + terminal.harmless(before),
        terminal.harmless(text[start:end]),
        terminal.harmless(after) + ("…" if end + _CONTEXT < len(text) else ""),
        style or screen.BOLD,
    )
