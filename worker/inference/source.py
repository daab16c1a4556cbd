"""Where a checkpoint comes from: a directory, or a model hub's repository at a pinned revision.

Only files that hold no code are ever fetched or read: weights as safetensors, configuration and tokenizer as JSON or
plain text. transformers is then given the local directory, hence converts and downloads nothing on its own.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars, tqdm

from worker.errors import CheckpointError
from worker.inference import checkpoint_files
from worker.inference.checkpoint_files import first_line
from worker.inference.stage import Tell, tell_nobody
from worker.messages import ModelIdentity

log = logging.getLogger("worker.inference")

# The checkpoint that comes with the worker, by the name that settings and results call it, wherever it is installed.
SHIPPED = {"demo": Path(__file__).parents[1] / "demo" / "checkpoint"}
_COMMIT = re.compile(r"[0-9a-f]{40}")
# For one answer of the hub. Its client waits for ever for the first one.
_ASK_TIMEOUT_S: Final = 10.0
# The client's own time-outs end a connection that is silent for 10 s, and it reports every 10 MB: 35 kB/s are enough.
_DOWNLOAD_LIMIT_S: Final = 300.0
# Reading from a disk: a share that is slow all through, and one whose server takes a minute to answer at all.
_SLOWEST_BYTES_PER_S: Final = 5e6
_LEAST_READ_LIMIT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Source:
    """A directory with a whole checkpoint in it, and what results will call it."""

    directory: Path
    identity: ModelIdentity


def find(
    name: str,
    revision: str | None,
    *,
    progress: bool | None,
    attempts: int,
    sleep: Callable[[float], None],
    tell: Tell = tell_nobody,
) -> Source:
    """Find a checkpoint's directory, downloading it if need be.

    Args:
        name: a directory, a hub id ("owner/name"), or a name in `SHIPPED` (a directory of that name is "./demo").
        revision: for a hub id the commit, tag or branch; a directory must have exactly this digest.
        progress: show download bars; None: on a terminal.
        attempts: tries of the download before giving up, with waits of 1 s to 30 s between them.
        sleep: waits so many seconds; may raise to give up at once.
        tell: hears what is done.

    Raises:
        CheckpointError: nothing there that can be loaded safely.
    """
    directory = local(name)
    if directory is not None:
        checkpoint_files.require_whole(directory, name)
        tell(f"reading {name}, {shown_bytes(size_bytes(directory))}, for its digest", read_limit_s(directory))
        digest = checkpoint_files.digest(directory)
        if revision not in (None, digest):
            raise CheckpointError(
                f'model.revision = "{revision}" but the files in {name} have the digest "{digest}": they are not the '
                "ones that were pinned; put those back, or pin this digest"
            )
        return Source(directory, ModelIdentity(name, digest))
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise CheckpointError(f'model.name = "{name}" is no directory here, and no hub id ("owner/name") either')
    shown = sys.stderr.isatty() if progress is None else progress
    directory = _download(name, revision, progress=shown, attempts=attempts, sleep=sleep, tell=tell)
    checkpoint_files.require_whole(directory, name, cached=True)
    commit = directory.name  # the hub's cache keeps each commit in a directory of its own
    if revision is None or not _COMMIT.fullmatch(revision):
        log.warning(
            'model.revision of "%s" is %s, which may change under you: this run uses commit %s; pin it with '
            'model.revision = "%s"',
            name,
            "not set" if revision is None else f'"{revision}"',
            commit,
            commit,
        )
    return Source(directory, ModelIdentity(name, commit))


def size_bytes(directory: Path) -> int:
    """How much the weights in a directory take."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def shown_bytes(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def read_limit_s(directory: Path) -> float:
    """A disk that has not given the weights in so many seconds does not answer."""
    return _LEAST_READ_LIMIT_S + size_bytes(directory) / _SLOWEST_BYTES_PER_S


def local(name: str) -> Path | None:
    """The directory of that name, if there is one.

    Raises:
        CheckpointError: it cannot be looked up.
    """
    try:
        directory = SHIPPED.get(name) or Path(name).expanduser()
        return directory if directory.is_dir() else None
    except (OSError, RuntimeError) as error:  # a folder above may not be entered; a user without a home
        raise CheckpointError(
            f'model.name = "{name}" cannot be looked up ({error}): write the whole path, and let the user that the '
            "worker runs as enter every folder of it"
        ) from error


def _download(
    name: str,
    revision: str | None,
    *,
    progress: bool,
    attempts: int,
    sleep: Callable[[float], None],
    tell: Tell,
) -> Path:
    if not progress:
        disable_progress_bars()
    import tenacity  # noqa: PLC0415 (a GPU box that measures a checkpoint of its own has torch and transformers alone)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, Exception) and not _is_answer(error)),
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_exponential_jitter(initial=1, max=30),
        before_sleep=lambda state: log.warning(
            'download of "%s" failed (attempt %d of %d), trying again: %s',
            name,
            state.attempt_number,
            attempts,
            state.outcome and state.outcome.exception(),
        ),
        sleep=sleep,
        reraise=True,
    )
    try:
        directory = retrying(_fetch, name, revision, tell)
    except Exception as error:
        raise _explained(error, name, revision) from error
    return Path(directory)


def _explained(error: Exception, name: str, revision: str | None) -> CheckpointError:
    """What stands between a user and a checkpoint of a hub, and the mend."""
    match error:
        case HFValidationError():
            return CheckpointError(f'model.name = "{name}" is no directory here, and no hub id: {error}')
        case RevisionNotFoundError():
            return CheckpointError(f'model.revision = "{revision}": the repository "{name}" has none such')
        case RepositoryNotFoundError():  # private and gated ones look the same without a token
            return CheckpointError(
                f'model.name = "{name}": no such directory here, and no such repository, or none that may be read '
                "without a token; check the name, or set HF_TOKEN"
            )
        case LocalEntryNotFoundError() if partial := getattr(error, "snapshot_path", None):  # IncompleteSnapshotError
            return CheckpointError(
                f'model.name = "{name}": a download to {partial} was broken off ({first_line(error)}): download it '
                "again, with a network and without HF_HUB_OFFLINE"
            )
        case LocalEntryNotFoundError():
            return CheckpointError(
                f'model.name = "{name}" at revision "{revision or "main"}" is not in the local cache and the hub could '
                f"not be reached ({error.__cause__ or error}): check the network, unset HF_HUB_OFFLINE, or set "
                "model.name to a directory"
            )
        case OSError() if error.filename is not None:  # of this machine, not of the hub
            return CheckpointError(
                f'model.name = "{name}" could not be downloaded, because {error.filename} cannot be written '
                f"({error.strerror}): set HF_HOME to a folder with room that the worker may write to, or model.name to "
                "a directory"
            )
    return CheckpointError(
        f'model.name = "{name}" could not be downloaded ({type(error).__name__}: {error}): try again later, or set '
        "model.name to a directory"
    )


def _fetch(name: str, revision: str | None, tell: Tell) -> str:
    """One attempt. While the hub is away, what the cache holds whole will do."""
    wanted: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": list(checkpoint_files.FILES),
        "ignore_patterns": list(checkpoint_files.NO_MODULE),
    }
    tell(f'asking the hub for "{name}"', _DOWNLOAD_LIMIT_S)
    directory: str
    if revision is None or not _COMMIT.fullmatch(revision):
        # The client asks what the revision is without a time-out, so it is asked with one before.
        try:
            huggingface_hub.HfApi().model_info(name, revision=revision, timeout=_ASK_TIMEOUT_S)
        except Exception as away:  # noqa: BLE001 (an answer comes again below, where the client sorts it)
            if not _is_answer(away):
                try:
                    directory = huggingface_hub.snapshot_download(name, local_files_only=True, **wanted)
                except LocalEntryNotFoundError as absent:
                    raise absent from away
                else:
                    return directory
    directory = huggingface_hub.snapshot_download(name, tqdm_class=_telling_bar(name, tell), **wanted)
    return directory


def _telling_bar(name: str, tell: Tell) -> type[tqdm]:
    """A kind of progress bar that tells of each piece, shown or not."""

    class TellingBar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._pieces = options.get("unit") == "B"
            self._received = 0.0
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]  # the hub client's

        def update(self, n: float | None = 1) -> bool | None:
            self._received += n or 0
            if self._pieces:
                tell(f'downloading "{name}"', _DOWNLOAD_LIMIT_S, shown_bytes(self._received))
            redrawn: bool | None = super().update(n)
            return redrawn

    return TellingBar


def _is_answer(error: BaseException) -> bool:
    """Tell answers, which another attempt will not change, from outages.

    The HTTP library is not named on purpose: it differs from one version of the hub's client to the next, so whatever
    is no answer counts as an outage.
    """
    if isinstance(error, LocalEntryNotFoundError):  # nothing cached, and the look-up failed for the reason within
        return error.__cause__ is None or _is_answer(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return 400 <= status < 500 and status not in {408, 429}
    if isinstance(error, (ConnectionError, TimeoutError)):
        return isinstance(error, OfflineModeIsEnabled)
    return isinstance(error, (OSError, ValueError, TypeError))  # disk full, bad name, wrong call
