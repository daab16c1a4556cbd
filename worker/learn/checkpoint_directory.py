"""A directory with a checkpoint of our own: written whole or not at all, and loadable as any other."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from worker.errors import CheckpointError, FatalError, SettingsError
from worker.inference import checkpoint_files, labels
from worker.inference.model import Checkpoint
from worker.inference.scores import LabelOrder

_CONFIG: Final = "config.json"
_DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16}


@contextmanager
def new_directory(output: Path) -> Iterator[Path]:
    """A folder that becomes ``output`` at the end, in one step; after an error, or Ctrl-C, nothing of it is left.

    Raises:
        SettingsError: ``output`` is there already, or nothing can be written beside it.
        FatalError: somebody else made it meanwhile, or it could not be written.
    """
    require_none(output)
    parent = output.absolute().parent
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".unfinished", dir=parent))
    except OSError as error:
        raise SettingsError(
            f"--output {output}: nothing can be written to {parent} ({error.strerror}); make that folder, or name "
            "another directory"
        ) from None
    try:
        folder = scratch / output.name
        folder.mkdir()
        yield folder
        _sync(folder)
        if os.path.lexists(output):  # (POSIX would put a folder in the place of an empty one.)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        folder.rename(output)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise FatalError(f"{output} could not be written ({why}); nothing of it is left") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def require_none(output: Path) -> None:
    """Raises SettingsError if something is called so."""
    if os.path.lexists(output):
        raise SettingsError(f"--output {output}: is there already, and is never overwritten; name another directory")


def write(checkpoint: Checkpoint, source: Path, directory: Path) -> None:
    """Write a checkpoint: its weights, and everything else as ``source`` has it.

    Weights are written in the number format of the source's. The classes are named in config.json, also where the
    source does not name them and the setting ``model.labels`` did.

    Args:
        checkpoint: whose weights are written; they are converted in place.
        source: the directory of the checkpoint that it was.
        directory: where to write.
    """
    checkpoint.model.to(_dtype(source)).save_pretrained(directory)  # type: ignore[arg-type]  # transformers' own
    for file in sorted({path for pattern in checkpoint_files.FILES for path in source.glob(pattern)}):
        own = file.relative_to(source)
        if own.parent == Path() and any(fnmatch(own.name, pattern) for pattern in checkpoint_files.WEIGHTS):
            continue
        (directory / own).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, directory / own)
    config: dict[str, Any] = checkpoint_files.read_json(source, _CONFIG, str(source), dict)
    if checkpoint.order is not None and not _says(config, checkpoint.order):
        names = labels.spell(checkpoint.order)
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (directory / _CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    readable = (directory / _CONFIG).stat().st_mode  # as this user's files are; transformers keeps weights to itself
    for weights in directory.glob("*.safetensors"):
        weights.chmod(readable)


def _says(config: dict[str, Any], order: LabelOrder) -> bool:
    """Whether a config names the classes in this order by itself."""
    names = {int(index): name for index, name in (config.get("id2label") or {}).items()}
    try:
        return labels.find(names, config.get("label2id"), len(names)) == order
    except CheckpointError:
        return False


def _dtype(source: Path) -> torch.dtype:
    """The number format of the largest weight."""
    largest, found = 0, "F32"
    for file in sorted(source.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is no dictionary)
                part = weights.get_slice(name)
                size = int(torch.Size(part.get_shape()).numel())
                if size > largest:
                    largest, found = size, part.get_dtype()
    return _DTYPES.get(found, torch.float32)


def _sync(directory: Path) -> None:
    """See that the files are on the disk before their name is."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
