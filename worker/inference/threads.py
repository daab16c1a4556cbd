"""How many threads torch computes with on the CPU: no more than there is CPU time for.

A container with half a core still sees every core of its machine. With a thread for each, the quota of a period is used
up in an instant and all of them stand still for the rest of it, most often in the middle of a product.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from worker.inference.cgroups import folders


def choose(wanted: int | None, root: Path = Path("/")) -> tuple[int, str]:
    """The number of threads, and why.

    Args:
        wanted: the setting ``model.threads``; None: the least of the CPUs that this process may run on, what torch
            would take (``OMP_NUM_THREADS``), and the quota of its cgroup, rounded up: a part of a core is worth having.
        root: where ``/proc`` and the cgroups' file systems are found.
    """
    if wanted is not None:
        return wanted, "model.threads"
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [
        (cpus, f"this process may run on {cpus} CPUs"),
        (torch.get_num_threads(), "OMP_NUM_THREADS, or torch's own choice"),
    ]
    if (quota := quota_of(root)) is not None:
        limits.append((math.ceil(quota[0]), f"{quota[1]} allows {quota[0]:g} CPUs"))
    return min(limits, key=lambda limit: limit[0])


def apply(wanted: int | None) -> str:
    """Let torch use as many threads as `choose` says. Returns the number and why, as a phrase."""
    count, why = choose(wanted)
    if count != torch.get_num_threads():
        torch.set_num_threads(count)
    return f"{count} thread{'' if count == 1 else 's'} ({why})"


def quota_of(root: Path = Path("/")) -> tuple[float, str] | None:
    """CPUs' worth of time that this process's cgroup may use, and the file that says so; None without a limit.

    The limit of each cgroup above counts as well. As in cgroups(7), proc_pid_mountinfo(5) and the kernel's
    sched-bwc.rst (version 1: ``cpu.cfs_quota_us`` of ``cpu.cfs_period_us``) and cgroup-v2.rst (``cpu.max``).
    """
    quotas = []
    for folder in folders(root, "cpu"):
        try:
            if (file := folder / "cpu.max").exists():
                allowed, period = file.read_text().split()
            else:
                file = folder / "cpu.cfs_quota_us"
                allowed, period = file.read_text().strip(), (folder / "cpu.cfs_period_us").read_text().strip()
            if allowed not in {"max", "-1"}:
                quotas.append((int(allowed) / int(period), f"/{file.relative_to(root)}"))
        except (OSError, ValueError, ZeroDivisionError):  # the controller is not there, or this is no file of cgroups
            continue
    return min(quotas, default=None)
