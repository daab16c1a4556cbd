"""Where checkpoints come from. The hub is a loopback server that speaks as much of its protocol as downloads need."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import families
from worker.errors import CheckpointError
from worker.inference import source
from worker.inference.loading import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def find(name: str | Path, revision: str | None = None) -> source.Source:
    return source.find(str(name), revision, progress=False, attempts=1, sleep=lambda _seconds: None)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(families.checkpoint("xlm-roberta"), tmp_path / "copy"))


def test_the_same_files_have_the_same_revision_and_any_change_another(copy: Path) -> None:
    before = find(copy).identity
    assert before.name == str(copy)
    assert before.revision == find(families.checkpoint("xlm-roberta")).identity.revision
    (copy / "README.md").write_text("not part of the checkpoint")
    assert find(copy).identity == before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert find(copy).identity.revision != before.revision


def test_a_directory_can_be_pinned_to_its_digest(copy: Path) -> None:
    pinned = find(copy).identity.revision
    assert find(copy, pinned).identity.revision == pinned
    with pytest.raises(CheckpointError, match=r"not the ones that were pinned"):
        find(copy, "sha256:0000000000000000")


def test_pickles_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.*convert"):
        find(copy)


def test_a_directory_without_a_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint there \(config\.json is missing\)") as caught:
        find(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such/directory", "./models/nli", "nli", "a/b/c", "~/nli"])
def test_what_is_neither_directory_nor_hub_id_is_refused_without_a_call(name: str) -> None:
    with pytest.raises(CheckpointError, match="no directory here, and no hub id"):
        find(name)


@contextmanager
def user_without_rights() -> Iterator[None]:
    """Root may read everything, so give that up for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", ""])
def test_what_may_not_be_read_is_named(file: str) -> None:
    with tempfile.TemporaryDirectory() as public:  # pytest's own folders nobody else may enter
        os.chmod(public, 0o755)  # noqa: PTH101, S103 (so that the file alone is what cannot be read)
        directory = shutil.copytree(families.checkpoint("xlm-roberta"), Path(public) / "copy")
        directory.chmod(0o755)
        for path in directory.iterdir():
            path.chmod(0o644)
        (directory / file).chmod(0)
        with user_without_rights(), pytest.raises(CheckpointError, match="Permission denied") as caught:
            find(directory)
        assert file in str(caught.value)
        (directory / file).chmod(0o755)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_what_only_looks_like_a_file_is_refused(copy: Path, file: str) -> None:
    path = copy / file
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(CheckpointError, match=f"{file} is a pointer of Git LFS.*git lfs pull"):
        find(copy)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=f"{file} (is no file|is missing)"):
        find(copy)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(CheckpointError, match=f"{file}|has no tokenizer"):
        load(str(copy), device="cpu", precision="fp32", self_test="off")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "no JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "has no weight_map"),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "no such shard lies beside it"),
        ('{"weight_map": {"a": "../../other/model.safetensors"}}', "no such shard lies beside it"),
    ],
)
def test_an_index_that_names_no_shards_is_refused(copy: Path, index: str, message: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors\.index\.json.*{message}"):
        find(copy)


def test_shards_without_an_index_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json, which says what"):
        find(copy)


def test_a_download_to_a_folder_that_was_broken_off_is_told_from_a_pickle(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    cache = copy / ".cache/huggingface/download"
    cache.mkdir(parents=True)
    (cache / "model.safetensors.0123.incomplete").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing in .*download it again"):
        find(copy)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/nli", "/" + "x" * 5000])
def test_a_name_that_cannot_be_looked_up_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be looked up .* write the whole path"):
        find(name)


class Hub(http.server.ThreadingHTTPServer):
    """Serves one repository.

    ``outages``: how many requests to answer with 503 first. ``silent``: accepts and never answers. ``half``: sends half
    of the weights and then nothing.
    """

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = {path.name: path for path in directory.iterdir()}
        self.requests: list[str] = []
        self.outages = 0
        self.silent = self.half = False
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.removeprefix(f"/some/nli/resolve/{COMMIT}/")
        self.server.requests.append(f"{self.command} {path}")
        if self.server.silent:
            self.server.ended.wait()
            self.close_connection = True
        elif self.server.outages:
            self.server.outages -= 1
            self.answer(503, b"away")
        elif path in {f"/api/models/some/nli/revision/{revision}" for revision in ("main", COMMIT)}:
            self.answer(200, json.dumps({"id": "some/nli", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/models/some/nli/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _oid(file)}
                for name, file in self.server.files.items()
            ]
            self.answer(200, json.dumps(tree).encode())
        elif path.startswith(f"/some/nli/resolve/{COMMIT}/") and name in self.server.files:
            file = self.server.files[name]
            self.answer(200, file.read_bytes(), ETag=f'"{_oid(file)}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(404, b"", X_Error_Code="RevisionNotFound" if "/some/nli/" in path else "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815 (http.server's name)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET" and self.server.half and len(body) > 10_000:
            self.wfile.write(body[: len(body) // 2])
            self.server.ended.wait()
        elif self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server's name)
        pass


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()  # noqa: S324 (git's, not a protection)


@pytest.fixture
def hub(copy: Path) -> Iterator[Hub]:
    shutil.copy(copy / "model.safetensors", copy / "pytorch_model.bin")
    (copy / "modeling_evil.py").write_text("raise SystemExit")
    served = Hub(copy)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served
    served.ended.set()
    served.shutdown()
    thread.join()
    served.server_close()


PROGRAM = """
import json, logging, sys
from worker.errors import CheckpointError
from worker.inference import source
source._ASK_TIMEOUT_S = 0.5
logging.basicConfig(level=logging.WARNING, format="LOG %(name)s %(message)s", stream=sys.stdout)
waits = []
try:
    found = source.find(sys.argv[1], sys.argv[2] or None, progress=None, attempts=3, sleep=waits.append)
    print(json.dumps({"directory": str(found.directory), "revision": found.identity.revision, "waits": len(waits)}))
except CheckpointError as error:
    print(json.dumps({"error": str(error), "waits": len(waits)}))
"""


def download(
    hub: Hub, home: Path, name: str = "some/nli", revision: str = "", **environment: str
) -> tuple[dict[str, Any], str]:
    """Run in a process of its own, because the hub's client reads its environment on import. Result and log."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, revision],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""  # no progress bar without a terminal
    log, _, result = done.stdout.strip().rpartition("\n")
    return json.loads(result), log


def test_a_floating_revision_resolves_to_its_commit_and_warns(hub: Hub, tmp_path: Path) -> None:
    result, log = download(hub, tmp_path)
    assert result["revision"] == COMMIT
    assert f'pin it with model.revision = "{COMMIT}"' in log
    names = {path.name for path in Path(result["directory"]).iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }  # no pickle, no code
    again, log = download(hub, tmp_path, HF_HUB_OFFLINE="1")  # what was downloaded serves offline
    assert again == result


def test_a_cache_that_cannot_be_written_says_so(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result, _ = download(hub, tmp_path / "file")
    assert "cannot be written" in result["error"]
    assert "set HF_HOME" in result["error"]
    assert result["waits"] == 0


@pytest.mark.parametrize("listed", [pytest.param(True, marks=pytest.mark.acceptance), False])
def test_a_cache_broken_off_is_to_be_downloaded_again(hub: Hub, tmp_path: Path, *, listed: bool) -> None:
    """Newer clients keep a list of what should be there; caches of older ones have none."""
    result, _ = download(hub, tmp_path)
    snapshot = Path(result["directory"])
    (snapshot / "model.safetensors").resolve().unlink()
    (snapshot / "model.safetensors").unlink()
    if not listed:
        shutil.rmtree(snapshot.parents[1] / "trees")
    result, _ = download(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert "download it again" in result["error"]
    assert "convert" not in result["error"]
    result, _ = download(hub, tmp_path)
    assert result["revision"] == COMMIT


def test_the_modules_of_sentence_transformers_are_downloaded(hub: Hub, tmp_path: Path, copy: Path) -> None:
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "onnx/config.json", "2_X/y.bin"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("{}")
    hub.files = {path.relative_to(copy).as_posix(): path for path in copy.rglob("*") if path.is_file()}
    result, _ = download(hub, tmp_path)
    found = Path(result["directory"])
    names = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"} < names
    assert not names & {"onnx/config.json", "2_X/y.bin"}


def test_a_pinned_revision_does_not_warn(hub: Hub, tmp_path: Path) -> None:
    result, log = download(hub, tmp_path, revision=COMMIT)
    assert result["revision"] == COMMIT
    assert "LOG worker" not in log


def test_a_hub_that_is_away_is_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.outages = 2
    result, log = download(hub, tmp_path)
    assert result["revision"] == COMMIT
    assert result["waits"] in {1, 2}  # the hub's client may try once more on its own
    assert "attempt 1 of 3" in log


def test_a_hub_that_stays_away_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.outages = 1000
    result, _ = download(hub, tmp_path)
    assert result["waits"] == 2
    assert "check the network" in result["error"]


def test_what_the_hub_does_not_have_is_not_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    result, _ = download(hub, tmp_path, name="other/nli")
    assert "no such repository" in result["error"]
    assert result["waits"] == 0
    result, _ = download(hub, tmp_path, revision="v9")
    assert 'model.revision = "v9"' in result["error"]
    assert result["waits"] == 0


def test_offline_without_a_copy_says_so(hub: Hub, tmp_path: Path) -> None:
    result, _ = download(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert "not in the local cache" in result["error"]
    assert result["waits"] == 0
    assert hub.requests == []


def test_while_the_hub_accepts_and_never_answers_the_cache_will_do(hub: Hub, tmp_path: Path) -> None:
    whole, _ = download(hub, tmp_path / "whole")
    hub.silent = True
    result, _ = download(hub, tmp_path / "whole")
    assert result == whole
    result, _ = download(hub, tmp_path / "empty")
    assert "the hub could not be reached" in result["error"]
    assert result["waits"] == 2


class Worker:
    """`xnli-worker run` with its model on the hub."""

    def __init__(self, hub: Hub, home: Path) -> None:
        mine = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "XNLI_MODEL__NAME": "some/nli",
            "XNLI_MODEL__REVISION": COMMIT,  # of which the client asks for the list of files without a time-out
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
            "XNLI_HTTP__PORT": "0",
        }
        self.began_s = time.monotonic()
        command = [sys.executable, "-m", "worker.cli", "run"]
        self.process = subprocess.Popen(command, env={**os.environ, **mine}, stderr=subprocess.PIPE, text=True)

    def said(self, what: str) -> float:
        """Seconds until a line of the log has it."""
        assert self.process.stderr is not None
        line = next((line for line in self.process.stderr if what in line), None)
        assert line is not None, f"never said {what!r}"
        return time.monotonic() - self.began_s

    def ended(self) -> tuple[int, float]:
        """Exit code, and seconds until then from now."""
        began_s = time.monotonic()
        with self.process:
            return self.process.wait(60), time.monotonic() - began_s


@pytest.mark.acceptance
def test_a_worker_whose_hub_never_answers_says_what_it_does_and_can_be_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.silent = True
    worker = Worker(hub, tmp_path)
    worker.said('"event": "starting"')
    worker.said("asking the hub")
    time.sleep(1)
    worker.process.send_signal(signal.SIGTERM)
    code, seconds = worker.ended()
    assert code == 0
    assert seconds < 2


@pytest.mark.acceptance
@pytest.mark.timeout(300)
@pytest.mark.parametrize("signals", [1, 2])
def test_a_download_that_is_broken_off_leaves_nothing_half(hub: Hub, tmp_path: Path, signals: int) -> None:
    hub.half = True
    worker = Worker(hub, tmp_path / "home")
    deadline_s = time.monotonic() + 200
    while not list((tmp_path / "home").rglob("*.incomplete")) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert list((tmp_path / "home").rglob("*.incomplete"))
    for _ in range(signals):
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    code, seconds = worker.ended()
    assert code == signals - 1
    assert seconds < 2
    assert not list((tmp_path / "home").rglob("*.incomplete"))
    assert not list((tmp_path / "home").rglob("model.safetensors"))
