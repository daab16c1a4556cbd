"""Threads follow the CPU time there is. The trees of files are as Linux shows them; real cgroups come last."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

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


# How the kernel itself tells of it: real cgroups, of both versions where they are there.

QUOTAS = {"cgroup": ("cpu.cfs_quota_us", "50000"), "cgroup2": ("cpu.max", "50000 100000")}


def without(why: str) -> NoReturn:
    warnings.warn(f"tests left out: {why}", stacklevel=2)  # in the summary even where skips are not listed
    pytest.skip(why)


def hierarchy(kind: str) -> Path:
    """Where the hierarchy is mounted whose version this is; of version 1 the one that limits CPU time."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        found, _, options = right.split(" ", 2)
        if found == kind and (kind == "cgroup2" or "cpu" in options.split(",")):
            return Path(left.split()[4])
    without(f"no file system of type {kind} is mounted")


@contextmanager
def group_in(top: Path) -> Iterator[Path]:
    folder = top / f"xnli-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        without(f"{folder} cannot be made: {error.strerror}")
    try:
        yield folder
    finally:
        folder.rmdir()


def in_group(group: Path, program: str, *around: str) -> str:
    """What a Python program prints whose process is in the group. ``around``: a command that runs it."""
    done = subprocess.run(
        ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh", *around, sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return done.stdout


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", QUOTAS)
def test_in_a_real_cgroup_of_half_a_core(kind: str) -> None:
    top = hierarchy(kind)
    if kind == "cgroup2" and "cpu" not in (top / "cgroup.subtree_control").read_text().split():
        without(f"no group in {top} may limit CPU time: version 1 has that controller, or nobody has enabled it")
    file, quota = QUOTAS[kind]
    with group_in(top) as group:
        (group / file).write_text(quota)
        said = in_group(group, "from worker.inference import threads; print(threads.apply(None), end='')")
        assert said == f"1 thread ({group / file} allows 0.5 CPUs)"


FOLDERS = "from worker.inference.cgroups import folders, Path; print(*folders(Path('/'), 'cpu'), sep='\\n')"


@pytest.mark.acceptance
def test_a_real_group_of_version_2_is_found_whatever_it_may_limit() -> None:
    top = hierarchy("cgroup2")
    with group_in(top) as group:
        assert {str(group), str(top)} <= set(in_group(group, FOLDERS).split())


@pytest.mark.acceptance
def test_a_container_sees_its_own_group_of_version_2_as_the_mount(tmp_path: Path) -> None:
    top = hierarchy("cgroup2")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        without("a namespace of cgroups needs root and unshare")
    with group_in(top) as group:
        mount = f'mount -t cgroup2 none {tmp_path} && cat /proc/self/cgroup {tmp_path}/cgroup.type && exec "$@"'
        shown = in_group(group, FOLDERS, "unshare", "--cgroup", "--mount", "sh", "-c", mount, "sh")
        assert "0::/\n" in shown
        assert "domain\n" in shown  # a file that the hierarchy's root lacks
        assert str(tmp_path) in shown.split()
