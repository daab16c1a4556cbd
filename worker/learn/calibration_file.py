"""A calibration as a file: JSON that people can read, checked when it is read.

`xnli-worker calibrate` writes one; ``model.calibration`` names it, or a folder of several. What it means is said in
`worker.rules.calibration`. Nothing here needs the extra ``learn``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from worker.avro.excerpt import excerpt
from worker.avro.json_request import Text
from worker.errors import SettingsError
from worker.messages import ModelIdentity
from worker.rules.calibration import NONE, Calibration, Calibrations, Isotonic, KnownLabel, Platt

FORMAT: Final = 1
MAX_LABELS: Final = 4096
MAX_POINTS: Final = 64
OTHERWISE: Final = "default"
"""The name of the calibration, among several, for requests that name none."""
_MAX_BYTES: Final = 32 * 1024 * 1024
_MAX_FILES: Final = 1000
_SHOWN: Final = 3

_Number = Annotated[float, Strict(), Field(ge=-1000, le=1000, allow_inf_nan=False)]
_Probability = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
_Count = Annotated[int, Strict(), Field(ge=0)]
_Name = Annotated[Text, Field(min_length=1, max_length=200)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Part):
    """The checkpoint that gave the scores."""

    name: _Name
    revision: _Name


class PlattCurve(_Part):
    """A straight line over the margin; see `worker.rules.calibration.Platt`."""

    method: Literal["platt"] = "platt"
    slope: Annotated[float, Strict(), Field(gt=0, le=1000)]
    intercept: _Number

    def made(self) -> Platt:
        """What is applied."""
        return Platt(self.slope, self.intercept)


class IsotonicCurve(_Part):
    """Points over the margin; see `worker.rules.calibration.Isotonic`."""

    method: Literal["isotonic"] = "isotonic"
    margins: Annotated[tuple[_Number, ...], Field(min_length=1, max_length=MAX_POINTS)]
    probabilities: Annotated[tuple[_Probability, ...], Field(min_length=1, max_length=MAX_POINTS)]

    @model_validator(mode="after")
    def _rises(self) -> IsotonicCurve:
        if len(self.margins) != len(self.probabilities):
            raise ValueError("margins and probabilities differ in number")
        if any(a >= b for a, b in zip(self.margins, self.margins[1:], strict=False)):
            raise ValueError("margins do not rise")
        if any(a > b for a, b in zip(self.probabilities, self.probabilities[1:], strict=False)):
            raise ValueError("probabilities fall")
        return self

    def made(self) -> Isotonic:
        """What is applied."""
        return Isotonic(self.margins, self.probabilities)


class Label(_Part):
    """A label that is known, by its finished hypotheses, and on how many examples that rests.

    ``precision`` and ``recall`` are what ``threshold`` reached on held-out folds.
    """

    label: Text
    hypotheses: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)]
    curve: Annotated[PlattCurve | IsotonicCurve, Field(discriminator="method")] | None = None
    threshold: _Probability | None = None
    precision: _Probability | None = None
    recall: _Probability | None = None
    positives: _Count = 0
    examples: _Count = 0


class CalibrationFile(_Part):
    """A calibration file. ``hypothesis_template``, ``label_set`` and ``fitted`` say where it comes from."""

    format: Literal[1]
    name: _Name
    model: Model
    multi_label: Annotated[bool, Strict()]
    hypothesis_template: Text | None = None
    label_set: Text | None = None
    temperature: Annotated[float, Strict(), Field(ge=0.01, le=100)] | None = None
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=MAX_LABELS)]
    fitted: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_whole(self) -> CalibrationFile:
        if self.multi_label != (self.temperature is None):
            raise ValueError("temperature is for labels that compete, and they need one: see multi_label")
        for known in self.labels:
            if self.multi_label != (known.curve is not None):
                raise ValueError(f"label {known.label!r}: curve is for multi_label, and each label needs one there")
        sentences = [sentence for known in self.labels for sentence in known.hypotheses]
        if len(set(sentences)) < len(sentences):
            twice = next(one for one in sentences if sentences.count(one) > 1)
            raise ValueError(f"the hypothesis {twice!r} stands there twice")
        return self

    def made(self) -> Calibration:
        """What is applied."""
        labels = tuple(
            KnownLabel(known.label, known.hypotheses, known.curve.made() if known.curve else None, known.threshold)
            for known in self.labels
        )
        return Calibration(self.name, ModelIdentity(self.model.name, self.model.revision), labels, self.temperature)

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), ensure_ascii=False, indent=1) + "\n"


def read(path: Path) -> list[CalibrationFile]:
    """The calibrations of a file, or of a folder's ``*.json``.

    Raises:
        SettingsError: one cannot be read, or is none; there are none.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise SettingsError(f"{path}: holds no *.json; write one with xnli-worker calibrate")
    if len(files) > _MAX_FILES:
        raise SettingsError(f"{path}: holds more than {_MAX_FILES:,} files")
    return [_read(file) for file in files]


def _read(file: Path) -> CalibrationFile:
    try:
        with file.open("rb") as source:
            content = source.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; name a calibration file, or a folder of them") from None
    if len(content) > _MAX_BYTES:
        raise SettingsError(f"{file}: is larger than {_MAX_BYTES:,} bytes, and no calibration file")
    try:
        found = json.loads(content)
        if isinstance(found, dict) and found.get("format") not in (None, FORMAT):
            raise SettingsError(
                f"{file}: format = {excerpt(found['format'])}: this worker reads {FORMAT}; fit it again with this "
                "version (xnli-worker calibrate)"
            )
        return CalibrationFile.model_validate_json(content)
    except ValidationError as error:
        raise SettingsError(f"{file}: {'; '.join(_findings(error))}; fit it again (xnli-worker calibrate)") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{file}: is no JSON ({str(error)[:100]}); name a calibration file") from None


def _findings(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False)
    lines = []
    for one in found[:_SHOWN]:
        place = ".".join(str(part) for part in one["loc"])
        shown = "" if one["type"] in {"missing", "value_error"} else f" = {excerpt(one['input'])}"
        lines.append(f"{place or 'the file'}{shown}: {one['msg'].removeprefix('Value error, ')}")
    return lines


def of_model(files: Sequence[CalibrationFile], model: ModelIdentity) -> Calibrations:
    """The calibrations of files that are for a model, and no others.

    A folder may hold some name for several revisions, so that a model can be replaced; one of them must be for this.

    Raises:
        SettingsError: a name has none for this revision, or two.
    """
    if not files:
        return NONE
    fitting: dict[str, Calibration] = {}
    for file in files:
        if file.model.revision != model.revision:
            continue
        if file.name in fitting:
            raise SettingsError(f"model.calibration: {file.name!r} is there twice for {model.revision}; keep one")
        fitting[file.name] = file.made()
    for file in files:
        if file.name not in fitting:
            raise SettingsError(
                f"model.calibration: {file.name!r} was fitted on {file.model.name} at {file.model.revision}, and the "
                f"model is {model.name} at {model.revision}: their scores differ; fit it again on this one "
                "(xnli-worker calibrate), or leave it out"
            )
    return Calibrations(fitting, fitting.get(OTHERWISE) if len(fitting) > 1 else next(iter(fitting.values())))


def offered(named: str | None, model: ModelIdentity) -> Calibrations:
    """What ``model.calibration`` names now, for a model.

    Raises:
        SettingsError: as `read` and `of_model`.
    """
    return NONE if named is None else of_model(read(Path(named)), model)


def write(file: CalibrationFile, path: Path, *, replaces: bool) -> None:
    """Write a calibration, whole or not at all.

    Raises:
        SettingsError: the file is there already and may not be replaced, or cannot be written.
    """
    require_free(path, replaces=replaces)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            beside.write_text(file.text(), encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror})") from None


def require_free(path: Path, *, replaces: bool) -> None:
    """Raise SettingsError where a file may not be written: before the work, not after it."""
    if path.is_dir():
        raise SettingsError(f"{path}: is a folder; name a file in it, such as {path / 'topics.json'}")
    if path.exists() and not replaces:
        raise SettingsError(f"{path}: is there already; name another file, or replace it with --force")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: there is no folder {path.parent}")
