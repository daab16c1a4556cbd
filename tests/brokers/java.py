"""The Java side of the tests: which JVM, and which jars.

``python -m tests.brokers.java`` resolves everything ahead of the tests, so that no test's time limit pays for a
download. Later runs find the jars in ``.cache/`` and ask Maven nothing until ``tests/pom.xml`` changes.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[2]
POM = REPOSITORY / "tests" / "pom.xml"
CACHE = REPOSITORY / ".cache" / "brokers"

MINIMUM_JAVA = 17  # Kafka 4 brokers do not start on less

Program = Literal["kafka", "registry"]

# Each program is a profile of the POM; the Maven goal makes a folder of it.
GOALS: dict[Program, str] = {"kafka": "copy-dependencies", "registry": "unpack"}


class Unavailable(Exception):  # noqa: N818 (a state of the machine, not a fault of ours)
    """This machine cannot run the Java programs; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Java:
    """A JVM: its command and its feature version, such as 17."""

    command: str
    version: int


@functools.cache
def java() -> Java:
    """The JVM of JAVA_HOME, or else of PATH.

    Raises:
        Unavailable: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    command = str(Path(home, "bin", "java")) if home else shutil.which("java")
    mend = f"install a JDK or JRE of version {MINIMUM_JAVA} or later and put it on PATH or in JAVA_HOME"
    if command is None or not Path(command).exists():
        raise Unavailable(f"real Kafka needs Java, and {command or 'java'} was not found: {mend}")
    shown = subprocess.run([command, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(?:1\.)?(\d+)', shown.stderr + shown.stdout)
    if found is None:
        raise Unavailable(f"{command} -version does not name its version: {mend}\n{shown.stderr}{shown.stdout}")
    version = int(found[1])
    if version < MINIMUM_JAVA:
        raise Unavailable(f"real Kafka needs Java {MINIMUM_JAVA}, and {command} is Java {version}: {mend}")
    return Java(command, version)


def folder(program: Program) -> Path:
    """The folder that holds ``program``: Kafka's jars, or the unpacked registry. Resolved on first use.

    Raises:
        Unavailable: Maven is needed and not installed, or could not resolve the artifacts.
    """
    edition = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    ready = CACHE / edition / program
    if ready.exists():
        return ready
    ready.parent.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once resolve once
        if not ready.exists():
            # Beside its place and renamed when whole: an interrupted download is never taken for a finished one.
            with tempfile.TemporaryDirectory(dir=ready.parent) as scratch:
                _resolve(program, Path(scratch, program))
                Path(scratch, program).rename(ready)
    return ready


def _resolve(program: Program, target: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable("real Kafka needs Maven once, to fetch its jars: install Maven 3.6 or later")
    goal = f"dependency:{GOALS[program]}"
    command = [maven, "-B", "-q", "-ntp", "-f", str(POM), "-P", program, goal, f"-DoutputDirectory={target}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        tail = "\n".join((run.stdout + run.stderr).splitlines()[-20:])
        raise Unavailable(f"Maven could not resolve profile {program!r} of {POM}; is its repository reachable?\n{tail}")


if __name__ == "__main__":
    try:
        java()
        for name in GOALS:
            folder(name)
    except Unavailable as missing:
        sys.exit(str(missing))
