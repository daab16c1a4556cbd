"""Imports run one way; see ARCHITECTURE.md. Read from the source, so that no import has to succeed to be judged."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[2] / "worker"
FILES = sorted(path for path in WORKER.rglob("*.py"))

# What each part may import of ours. A part not named here (pipeline, commands, demo, cli) may import anything but cli.
ALLOWED = {
    "messages": set[str](),
    "errors": {"messages"},  # their types alone
    "settings": {"errors", "messages", "rules"},
    "rules": {"messages", "errors", "rules"},
    "telemetry": {"messages", "errors", "telemetry"},
    "avro": {"messages", "errors", "settings", "rules", "avro"},
    "inference": {"messages", "errors", "rules", "inference"},
    "kafka": {"messages", "errors", "settings", "rules", "telemetry", "kafka"},
    "label_sets": {"messages", "errors", "settings", "rules", "telemetry", "kafka", "label_sets"},
    "http": {"messages", "errors", "telemetry", "http"},
    "pipeline": {
        "messages", "errors", "settings", "rules", "telemetry", "avro", "inference", "kafka", "http", "pipeline",
    },
}  # fmt: skip
FORBIDDEN = {
    "rules": {"confluent_kafka", "torch", "transformers", "threading", "time", "os", "asyncio", "socket", "random"},
    "inference": {"confluent_kafka", "fastavro", "pydantic", "pydantic_settings", "prometheus_client", "structlog"},
    "messages": {"confluent_kafka", "torch", "fastavro", "pydantic"},
}


def _part(path: Path) -> str:
    relative = path.relative_to(WORKER)
    return relative.parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Full names of the modules a file imports, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(WORKER)))
def test_imports_run_one_way(path: Path) -> None:
    part = _part(path)
    for name in _imports(path):
        top, _, rest = name.partition(".")
        assert top not in FORBIDDEN.get(part, set()), f"{part} imports {name}"
        if top != "worker":
            continue
        target = rest.partition(".")[0]
        assert target != "cli" or part in {"cli", "__main__"}, f"{part} imports the command line"
        if part in ALLOWED and target != part and not target.startswith("__"):
            assert target in ALLOWED[part], f"{part} imports worker.{target}"


def test_settings_is_the_only_reader_of_the_environment() -> None:
    """The demo passes the environment on to the process it starts; it reads no variable of it."""
    readers = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
                readers.add(str(path.relative_to(WORKER)))
    assert readers <= {"settings.py", "demo/play.py"}


def test_nothing_unpickles_or_runs_remote_code() -> None:
    for path in FILES:
        for name in _imports(path):
            assert name.partition(".")[0] not in {"pickle", "dill", "joblib", "shelve", "marshal"}, f"{path}: {name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
