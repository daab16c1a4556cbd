"""Imports run one way; see ARCHITECTURE.md. Read from the source, so that no import has to succeed to be judged."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[2] / "worker"
FILES = sorted(path for path in WORKER.rglob("*.py"))

# What each part may import of ours, itself always. Who adds a part adds it here: one without a line is refused.
_NOUNS = {"messages", "errors", "redaction", "terminal"}
_ENGINE = _NOUNS | {"rules", "inference"}  # importable with neither confluent_kafka nor fastavro installed
_EDGES = _NOUNS | {"rules", "settings", "telemetry", "kafka"}
_RUNNING = _EDGES | {
    *(
        "avro",
        "inference",
        "http",
        "label_sets",
        "language_detection",
        "learn",
        "pipeline",
        "process",
        "streams",
        "__version__",
    )
}
ALLOWED = {
    "messages": set[str](),
    "errors": {"messages", "redaction"},  # Unpublishable tells which output was refused; no message holds a secret
    "redaction": set[str](),
    "terminal": set[str](),
    "process": set[str](),
    "language_detection": _NOUNS,
    "streams": {"redaction", "terminal"},
    "rules": _NOUNS,
    "telemetry": _NOUNS | {"streams"},
    "screen": {"terminal"},
    "http": _NOUNS | {"telemetry", "avro", "rules", "__version__"},
    "settings": _NOUNS | {"rules"},
    "inference": _ENGINE,
    "avro": _NOUNS | {"rules", "settings"},
    "kafka": _EDGES,
    "label_sets": _EDGES,
    "learn": _EDGES | {"avro", "inference", "label_sets", "__version__"},
    "pipeline": _EDGES | {"avro", "inference", "http"},
    "start": _NOUNS | {"process", "inference"},  # of inference the shape of a callback alone
    "endpoint": _RUNNING,
    "reload": _RUNNING | {"start"},
    "other_models": _RUNNING | {"reload", "start"},
    "tracing": _NOUNS | {"settings", "telemetry", "__version__"},
    "app": _RUNNING | {"start", "endpoint", "tracing", "other_models"},
    "serve": _RUNNING | {"start", "endpoint", "app", "other_models", "tracing"},
    "demo": _EDGES | {"avro", "process", "streams", "screen"},
    # (The demo's texts and tokenizer are what bench measures with.)
    "commands": _RUNNING | {"app", "endpoint", "demo", "start", "streams", "screen"},
    "usage": _RUNNING | {"app", "serve", "demo", "commands"},
    "cli": _NOUNS | {"usage", "process", "streams", "__version__"},
}
FORBIDDEN = {
    "inference": {"confluent_kafka", "fastavro", "pydantic", "pydantic_settings", "prometheus_client", "structlog"},
    "kafka": {"torch", "transformers", "fastavro"},
}

# Decisions and shapes: called with values, they answer with values, so that a test is a call.
PURE = (
    "messages.py",
    "errors.py",
    "redaction.py",  # but for the secrets that it was told
    "terminal.py",
    "rules/*.py",
    "pipeline/batch.py",
    "inference/rows.py",
    "inference/scores.py",
    "avro/excerpt.py",
    "avro/framing.py",
    "avro/schema_walk.py",
    "avro/request.py",
    "avro/result.py",
)
IMPURE_LIBRARIES = {
    "asyncio", "concurrent", "confluent_kafka", "multiprocessing", "os", "queue", "random", "secrets", "signal",
    "socket", "subprocess", "threading", "time", "torch", "transformers",
}  # fmt: skip
IMPURE_NAMES = {"now", "utcnow", "today", "environ", "getenv", "random", "default_rng", "uuid1", "uuid4"}


def _name(path: Path) -> str:
    return path.relative_to(WORKER).as_posix()


def _part(path: Path) -> str:
    return path.relative_to(WORKER).parts[0].removesuffix(".py")


def _is_pure(path: Path) -> bool:
    return any(fnmatch(_name(path), pattern) for pattern in PURE)


def _module(path: Path) -> str:
    parts = path.relative_to(WORKER.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


def _imports(path: Path) -> Iterator[str]:
    """Full names of the modules a file imports, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imports_of_ours(path: Path) -> set[str]:
    """The modules of worker/ among them: of ``worker.rules.retry.decide`` that is ``worker.rules.retry``."""
    found = set()
    for imported in _imports(path):
        name = imported
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name:
            found.add(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_run_one_way(path: Path) -> None:
    part = _part(path)
    if part.startswith("__"):  # worker/__init__.py, worker/__main__.py
        return
    assert part in ALLOWED, f"say in ALLOWED what worker/{part} may import"
    for name in _imports(path):
        top, _, rest = name.partition(".")
        assert top not in FORBIDDEN.get(part, set()), f"{part} imports {name}"
        target = rest.partition(".")[0]
        if top == "worker" and target != part:
            assert target in ALLOWED[part], f"{part} imports worker.{target}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: _imports_of_ours(path) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]), pytrace=False)


@pytest.mark.parametrize("path", [path for path in FILES if _is_pure(path)], ids=_name)
def test_pure_modules_know_no_clock_thread_broker_device_or_environment(path: Path) -> None:
    for name in _imports(path):
        assert name.partition(".")[0] not in IMPURE_LIBRARIES, f"{_name(path)} imports {name}"
        assert name.rpartition(".")[2] not in IMPURE_NAMES, f"{_name(path)} imports {name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Attribute) or node.attr not in IMPURE_NAMES, f"line {node.lineno}: {node.attr}"
    for module in _imports_of_ours(path):
        assert _is_pure(MODULES[module]), f"{_name(path)} imports {module}, which is not pure"


@pytest.mark.parametrize("pattern", PURE)
def test_the_list_of_pure_modules_is_not_stale(pattern: str) -> None:
    assert any(fnmatch(_name(path), pattern) for path in FILES)


def test_settings_is_the_only_reader_of_the_environment() -> None:
    """The demo passes the environment on to the process it starts; it reads no variable of it."""
    readers = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
                readers.add(_name(path))
    assert readers <= {"settings/reading.py", "demo/play.py"}


def test_nothing_unpickles_or_runs_remote_code() -> None:
    for path in FILES:
        for name in _imports(path):
            assert name.partition(".")[0] not in {"pickle", "dill", "joblib", "shelve", "marshal"}, f"{path}: {name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
