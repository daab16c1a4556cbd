"""Helm and the chart: what is rendered of it, resource by resource."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.brokers.java import Unavailable

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "deploy" / "helm" / "xnli-worker"
# The three value files, by name; that of the defaults is read by Helm itself.
VALUES: Final = {"defaults": (), "production": ("values-production.yaml",), "gpu": ("values-gpu.yaml",)}
KUBERNETES: Final = "1.33"
SCHEMAS: Final = Path(__file__).parent / "schemas"

Resource = dict[str, Any]


@cache
def helm() -> str:
    """The command ``helm``: of XNLI_TEST_HELM, on the path, or as ``make helm`` builds it.

    Raises:
        Unavailable: there is none.
    """
    built = ROOT / ".cache" / "helm" / "helm"
    found = os.environ.get("XNLI_TEST_HELM") or shutil.which("helm") or (str(built) if built.exists() else None)
    if found is None:
        raise Unavailable(
            "the chart's tests need Helm 3, and it was not found: install it, or build it with `make helm`"
        )
    return found


def run(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Helm, to its end. One that was built without a release's flags takes Kubernetes for 1.20."""
    command = [helm(), verb, "--kube-version", KUBERNETES, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def template(*arguments: str) -> list[Resource]:
    """What ``helm template`` makes of the chart with these arguments."""
    done = run("template", "xnli", str(CHART), "--namespace", "inference", *arguments)
    assert done.returncode == 0, done.stderr
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource is not None]


@cache
def rendered(values: str) -> tuple[Resource, ...]:
    """The chart with one of the value files."""
    files = [argument for name in VALUES[values] for argument in ("--values", str(CHART / name))]
    return tuple(template(*files))


def refused(*arguments: str) -> str:
    """What Helm says to arguments that it refuses."""
    done = run("template", "xnli", str(CHART), *arguments)
    assert done.returncode != 0, done.stdout
    return done.stderr


def one(resources: tuple[Resource, ...] | list[Resource], kind: str) -> Resource:
    """The one resource of a kind."""
    (found,) = [resource for resource in resources if resource["kind"] == kind]
    return found


def schema(name: str) -> dict[str, Any]:
    """One of the schemas beside this file."""
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return found
