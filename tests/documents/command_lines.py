"""The command lines that README and docs/ print, and those that no test can run, each with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENTS: Final = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))

_MEASURED = "a benchmark: it takes long, and a quiet machine"
_INSTALLS = "it installs, and make does the same before every test"
NOT_RUN: Final = {
    "make demo": "the last step of .ci/run",
    "make test": "the suite, of which this test is a part",
    "docker ": "needs Docker",
    "kafka-acls.sh": "of a distribution of Kafka; tests/integration/test_security.py grants the same by the admin API",
    "make audit": "asks PyPI's vulnerability service",
    "make sbom": "it installs a tool of its own, and shows what the project does not decide",
    "helm install": "needs a cluster; the chart is rendered and validated by tests/deploy",
    "export XNLI_KAFKA__PROPERTIES=": "the password is an example",
    "xnli-worker dead-letters show --config worker.toml 0:17": "the place is an example; others are shown by tests",
    "ln -s /models": "the folders are examples; tests/integration/test_swaps.py replaces a link as this line does",
    "kill -HUP": "the process is an example; tests/integration/test_swaps.py sends it",
    "python3 -m venv": _INSTALLS,
    ".venv/bin/pip install": _INSTALLS,
    ". .venv/bin/activate": _INSTALLS,
    "git worktree add": _MEASURED,
    "python -m tests.bench": _MEASURED,
    "XNLI_TEST_FAULTS_MESSAGES=100000 make faults": _MEASURED,
}


class CommandLine(NamedTuple):
    """A line and the document that prints it."""

    document: str
    line: str

    @property
    def reason(self) -> str | None:
        """Why it is not run; None for what is."""
        return next((why for begin, why in NOT_RUN.items() if self.line.startswith(begin)), None)


def command_lines(document: str) -> Iterator[CommandLine]:
    """What stands behind ``$`` in blocks called console, and indented lines that begin a program."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield CommandLine(document, re.sub(r"\s{2,}#.*", "", line[2:]).strip())
    for line in re.findall(r"^ {4}((?:python|git|make|xnli-worker|XNLI_\w+=\S+) .*)$", text, re.MULTILINE):
        yield CommandLine(document, line.strip())
