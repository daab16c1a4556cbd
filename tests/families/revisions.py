"""Revisions of the shipped checkpoint that score a little differently, and a link that leads to one of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from safetensors.torch import load_file, save_file

from worker.demo.play import CHECKPOINT

_WEIGHTS: Final = "model.safetensors"
_HEAD: Final = "classifier.out_proj.weight"


def revision(folder: Path, scale: float) -> Path:
    """A copy of the shipped checkpoint whose last layer is ``scale`` times what it was. Same labels, other scores."""
    shutil.copytree(CHECKPOINT, folder)
    weights = load_file(folder / _WEIGHTS)
    weights[_HEAD] = weights[_HEAD] * scale
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    return folder


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
