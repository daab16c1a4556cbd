from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worker.inference.free_memory import free_bytes

CPU = torch.device("cpu")
V1 = "32 31 0:29 {root} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def machine(folder: Path, cgroup: str, mounts: str, files: dict[str, str], available_kb: int = 8_000) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(cgroup)
    (folder / "proc/self/mountinfo").write_text(mounts)
    (folder / "proc/meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable:    {available_kb} kB\n")
    for name, text in files.items():
        file = folder / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def v2(path: str, limit: str, used: int, droppable: int) -> dict[str, str]:
    stat = f"anon 5\ninactive_file {droppable}\n"
    return {f"{path}memory.max": f"{limit}\n", f"{path}memory.current": f"{used}\n", f"{path}memory.stat": stat}


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "expected"),
    [
        ("0::/\n", V2.format(root="/"), {}, 8_000 * 1024),
        ("0::/\n", V2.format(root="/"), v2("", "max", 900, 100), 8_000 * 1024),
        ("0::/\n", V2.format(root="/"), v2("", "1000", 900, 100), 200),
        # The least of all above counts.
        ("0::/a/b\n", V2.format(root="/"), v2("a/b/", "1000", 100, 0) | v2("a/", "700", 500, 50), 250),
        ("0::/\n", V2.format(root="/"), v2("", "1000", 1500, 0), 0),
        (
            "4:memory:/kube/pod\n",
            V1.format(root="/"),
            {
                "memory/kube/pod/memory.limit_in_bytes": "2000\n",
                "memory/kube/pod/memory.usage_in_bytes": "1500\n",
                "memory/kube/pod/memory.stat": "total_inactive_file 300\n",
            },
            800,
        ),
    ],
)
def test_what_machine_and_cgroups_leave(
    cgroup: str, mounts: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    assert free_bytes(CPU, machine(tmp_path, cgroup, mounts, files)) == expected


def test_without_linux_nobody_tells(tmp_path: Path) -> None:
    assert free_bytes(CPU, tmp_path) is None


def test_this_machine_has_some() -> None:
    found = free_bytes(CPU)
    assert found is None or found > 10**6
