"""How much memory is left for another model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from worker.inference.cgroups import folders


def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that may be allocated on a device now; None where nobody tells.

    On CUDA what no process has, and what torch keeps for itself and does not use. On the CPU what the kernel says is
    available (``MemAvailable``, proc_meminfo(5)), and within each cgroup above this process what its limit leaves;
    pages of files that can be dropped count as free.

    Args:
        device: Where the model would lie.
        root: Where ``/proc`` and the cgroups' file systems are found.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    found = [*_of_machine(root), *_of_cgroups(root)]
    return max(0, min(found)) if found else None


def _of_machine(root: Path) -> Iterator[int]:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):  # no Linux
        return


def _of_cgroups(root: Path) -> Iterator[int]:
    for folder in folders(root, "memory"):
        try:
            if (folder / "memory.max").exists():
                limit, used, droppable = "memory.max", "memory.current", "inactive_file"
            else:
                limit, used, droppable = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            allowed = (folder / limit).read_text().strip()
            if allowed == "max":
                continue
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield int(allowed) - int((folder / used).read_text()) + int(counts.get(droppable, 0))
        except (OSError, ValueError):  # the controller is not there, or this is no file of cgroups
            continue
