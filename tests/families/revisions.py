"""Revisions of the shipped checkpoint that score a little differently, a calibration of each, and a link to one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from safetensors.torch import load_file, save_file

from worker.demo.play import CHECKPOINT
from worker.inference import checkpoint_files
from worker.learn import calibration_file
from worker.learn.calibration_file import CalibrationFile

_WEIGHTS: Final = "model.safetensors"
_HEAD: Final = "classifier.out_proj.weight"


def revision(folder: Path, scale: float) -> Path:
    """A copy of the shipped checkpoint whose last layer is ``scale`` times what it was. Same labels, other scores."""
    shutil.copytree(CHECKPOINT, folder)
    weights = load_file(folder / _WEIGHTS)
    weights[_HEAD] = weights[_HEAD] * scale
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    return folder


def calibrate(
    file: Path, checkpoint: Path, labels: Sequence[str], temperature: float, *, template: str = "This example is {}."
) -> None:
    """A calibration of labels that compete, for the files of a checkpoint, called as its file without the number."""
    name, _, _ = file.stem.partition("-")
    revision = checkpoint_files.digest(checkpoint)
    known = [{"label": label, "hypotheses": [template.replace("{}", label)]} for label in labels]
    made = CalibrationFile.model_validate(
        {
            "format": calibration_file.FORMAT,
            "name": name,
            "model": {"name": "demo", "revision": revision},
            "multi_label": False,
            "temperature": temperature,
            "labels": known,
        }
    )
    file.parent.mkdir(exist_ok=True)
    calibration_file.write(made, file, replaces=True)


class Link:
    """A symbolic link that is replaced at once, as a deployment does it."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self.to(target)

    def to(self, target: Path) -> None:
        """Let it lead to another directory."""
        beside = self.path.with_name(f"{self.path.name}.new")
        beside.unlink(missing_ok=True)
        beside.symlink_to(target, target_is_directory=True)
        beside.replace(self.path)
