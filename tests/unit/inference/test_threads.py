"""Threads follow the CPU time there is. The trees of files are as Linux shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from worker.inference import threads

ROOT = Path(__file__).parents[3]
V1 = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "41 31 0:38 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def machine(folder: Path, cgroup: str, mounts: str, **files: str) -> Path:
    """A root folder. ``files``: cgroup files by their path under /sys/fs/cgroup, with __ for the slashes."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(cgroup)
    (folder / "proc/self/mountinfo").write_text(OTHERS + mounts)
    for name, text in files.items():
        file = folder / "sys/fs/cgroup" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def v1(path: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{path}cpu.cfs_quota_us": f"{quota}\n", f"{path}cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "quota"),
    [
        # A container with a namespace of its own, and a group of it.
        ("0::/\n", V2.format(root="/"), {"cpu.max": "50000 100000\n"}, (0.5, "/sys/fs/cgroup/cpu.max")),
        (
            "0::/a/b\n",
            V2.format(root="/"),
            {"a__b__cpu.max": "max 100000\n", "a__cpu.max": "150000 100000\n", "cpu.max": "400000 100000\n"},
            (1.5, "/sys/fs/cgroup/a/cpu.max"),
        ),
        ("0::/\n", V2.format(root="/"), {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", V2.format(root="/"), {}, None),  # the root of a machine has no such file
        # Processes that were moved out of the namespace's view.
        ("0::/../../other\n", V2.format(root="/"), {"cpu.max": "200000 100000\n"}, (2.0, "/sys/fs/cgroup/cpu.max")),
        # Version 1 on a machine, and in a container that sees the host's path and its own group as the mount.
        (
            "4:memory:/x\n3:cpu,cpuacct:/kube/pod\n0::/y\n",
            V1.format(root="/"),
            v1("cpu,cpuacct__kube__pod__", 25_000, 50_000),
            (0.5, "/sys/fs/cgroup/cpu,cpuacct/kube/pod/cpu.cfs_quota_us"),
        ),
        (
            "3:cpu,cpuacct:/docker/abc\n",
            V1.format(root="/docker/abc"),
            v1("cpu,cpuacct__", 300_000),
            (3.0, "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"),
        ),
        ("3:cpu,cpuacct:/\n", V1.format(root="/"), v1("cpu,cpuacct__", -1), None),
        ("3:cpu,cpuacct:/\n", V1.format(root="/"), v1("cpu,cpuacct__", 5, 0), None),
        ("", "", {}, None),
    ],
)
def test_the_quota_of_a_cgroup(
    cgroup: str, mounts: str, files: dict[str, str], quota: tuple[float, str] | None, tmp_path: Path
) -> None:
    assert threads.quota_of(machine(tmp_path, cgroup, mounts, **files)) == quota


def test_without_linux_there_is_none(tmp_path: Path) -> None:
    assert threads.quota_of(tmp_path) is None


def test_the_least_limit_holds_and_the_setting_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = machine(tmp_path / "half", "0::/\n", V2.format(root="/"), **{"cpu.max": "50000 100000"})
    more = machine(tmp_path / "more", "0::/\n", V2.format(root="/"), **{"cpu.max": "250000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)
    assert threads.choose(None, half) == (1, "/sys/fs/cgroup/cpu.max allows 0.5 CPUs")
    assert threads.choose(None, more) == (3, "/sys/fs/cgroup/cpu.max allows 2.5 CPUs")
    assert threads.choose(None, tmp_path) == (32, "OMP_NUM_THREADS, or torch's own choice")
    assert threads.choose(7, half) == (7, "model.threads")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert threads.choose(None, more) == (2, "this process may run on 2 CPUs")


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A real cgroup of half a core, of whichever version is here."""
    quotas = {"/sys/fs/cgroup/cpu": ("cpu.cfs_quota_us", "50000"), "/sys/fs/cgroup": ("cpu.max", "50000 100000")}
    for top, (file, quota) in quotas.items():
        folder = Path(top) / f"xnli-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / file).write_text(quota)
        except OSError:
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("needs a cgroup that may be written to")


@pytest.mark.acceptance
def test_in_a_real_cgroup(half_a_core: Path) -> None:
    program = "from worker.inference import threads; print(threads.apply(None), end='')"
    group = half_a_core / "cgroup.procs"
    done = subprocess.run(
        ["sh", "-c", f'echo $$ >{group} && exec "$@"', "sh", sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout.startswith("1 thread (/sys/fs/cgroup/")
    assert done.stdout.endswith("allows 0.5 CPUs)")
