"""The files of a checkpoint: which take part, whether they are all there and readable, and their digest."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors

from worker.errors import CheckpointError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = (_WHOLE, _INDEX, "model-*-of-*.safetensors")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")  # the last: SentencePiece
FILES = (
    *WEIGHTS,
    *VOCABULARIES,
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    # What sentence-transformers adds. Its modules lie in folders such as 1_Pooling.
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]*_*/config.json",
    "[0-9]*_*/model.safetensors",
)
# Other folders of a repository hold other formats of the same weights. The hub's patterns match across slashes.
NO_MODULE = ("[!0-9]*/*", "*/*/*")
_LFS = b"version https://git-lfs"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def require_whole(directory: Path, name: str, *, cached: bool = False) -> None:
    """Refuse what is no whole checkpoint. ``cached``: it lies in the hub's cache, where no pickle is downloaded to.

    Raises:
        CheckpointError: a file is missing, may not be read, or is something else than it seems.
    """
    try:
        _require_weights(directory, name, cached=cached)
    except OSError as error:  # permissions, a disk that fails, a link that leads in a circle
        raise CheckpointError(
            f'model.name = "{name}": {error.filename or "a file"} cannot be read ({error.strerror or error}): the user '
            "that the worker runs as needs to read every file there"
        ) from error


def _require_weights(directory: Path, name: str, *, cached: bool) -> None:
    lacks = [] if (directory / "config.json").is_file() else ["config.json"]
    if not any(next(directory.glob(pattern), None) is not None for pattern in WEIGHTS):
        lacks.append("model.safetensors")
    if not lacks:
        _require_files(directory, name)
        return
    if _is_partial(directory, cached=cached):
        raise CheckpointError(
            f'model.name = "{name}": {" and ".join(lacks)} is missing in {directory}, as a download leaves it that is '
            "broken off: download it again, with a network and without HF_HUB_OFFLINE. If it is missing then too, "
            "choose a revision that has it"
        )
    if "config.json" in lacks:
        raise CheckpointError(f'model.name = "{name}": no checkpoint there (config.json is missing)')
    pickle = next((path.name for pattern in _PICKLES for path in directory.glob(pattern)), None)
    found = f" ({pickle} is a pickle, which can run code when it is read)" if pickle else ""
    raise CheckpointError(
        f'model.name = "{name}": no model.safetensors there{found}. Only safetensors are loaded: choose a revision '
        "that has them, or convert the checkpoint once, in a place you trust, with transformers' "
        "from_pretrained(...).save_pretrained(...)"
    )


def _require_files(directory: Path, name: str) -> None:
    """Refuse what only looks like a checkpoint's file: a folder, a pipe, a pointer of Git LFS, a lost shard."""
    for path in _files(directory):
        own = path.relative_to(directory).as_posix()
        if not path.is_file():
            raise CheckpointError(
                f'model.name = "{name}": {own} is no file, or a link that leads to none: copy or download it again'
            )
        with path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise CheckpointError(
                    f'model.name = "{name}": {own} is a pointer of Git LFS, not the file itself: run "git lfs pull" in '
                    "the repository, or download the file"
                )
    if (directory / _WHOLE).is_file():
        return
    if not (directory / _INDEX).is_file():
        raise CheckpointError(f'model.name = "{name}": {_INDEX}, which says what the shards hold, is missing')
    shards = read_json(directory, _INDEX, name, dict).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{_INDEX} of {name} has no weight_map from weights to files: copy or download it again")
    for shard in sorted(set(shards.values())):
        if not fnmatch(shard, WEIGHTS[2]) or "/" in shard or not (directory / shard).is_file():
            raise CheckpointError(
                f'{_INDEX} of {name} names "{shard}", and no such shard lies beside it (they are called '
                f"{WEIGHTS[2]}): copy or download it again"
            )


def _files(directory: Path) -> list[Path]:
    """Everything that takes part."""
    return sorted({path for pattern in FILES for path in directory.glob(pattern)})


def _is_partial(directory: Path, *, cached: bool) -> bool:
    """Whether a download may have been broken off.

    In its cache the hub's client keeps a list of a commit's files, and has compared the directory with it. Without a
    list nobody knows. A download to a directory of one's own leaves a file behind.
    """
    if cached:
        return not (directory.parents[1] / "trees" / f"{directory.name}.json").is_file()
    return next((directory / ".cache/huggingface/download").glob("**/*.incomplete"), None) is not None


def read_json(directory: Path, file: str, name: str, kind: type[dict[str, Any] | list[Any]]) -> Any:
    """Read a JSON file of the checkpoint that messages call ``name``: an object or an array, as ``kind`` says.

    Raises:
        CheckpointError: it cannot be read, is no JSON, or is something else.
    """
    try:
        found = json.loads((directory / file).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{file} of {name} cannot be read ({error.strerror or error}): the user that the worker runs as needs to "
            "read it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} of {name} is no JSON ({first_line(error)}): it is damaged; copy or download it again"
        ) from error
    if not isinstance(found, kind):
        wanted = "object" if kind is dict else "array"
        raise CheckpointError(f"{file} of {name} holds no JSON {wanted}: it is damaged; copy or download it again")
    return found


def require_readable_weights(directory: Path, name: str) -> None:
    """Refuse weights that are cut off or damaged at their beginning, without reading them.

    Raises:
        CheckpointError: a file is no safetensors, or not as long as its header says.
    """
    for path in sorted(directory.glob("model*.safetensors")):
        try:
            with safetensors.safe_open(path, framework="pt"):
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path.name} of {name} cannot be read ({first_line(error)}): it is damaged; copy or download it again"
            ) from error


def is_failure(error: BaseException) -> bool:
    """Whether a library failed, rather than somebody ends the process. A panic in tokenizers' Rust is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line: those of transformers run over several."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# The directory as it is really called, and of each file its own path, inode, size in bytes and time in nanoseconds.
Fingerprint = tuple[Path, tuple[tuple[str, int, int, int], ...]]


def fingerprint(directory: Path) -> Fingerprint:
    """What tells, without reading any, whether files that take part were written or replaced. Raises OSError."""
    found = []
    for path in _files(directory):
        about = path.stat()
        found.append((path.relative_to(directory).as_posix(), about.st_ino, about.st_size, about.st_mtime_ns))
    return directory.resolve(), tuple(found)


def digest(directory: Path) -> str:
    """SHA-256 over names and contents of every file that takes part: the same files, the same revision."""
    total = hashlib.sha256()
    for path in _files(directory):
        with path.open("rb") as file:
            own = path.relative_to(directory).as_posix()
            total.update(f"{own}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()[:16]}"
