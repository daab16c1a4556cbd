"""Where the limits of this process's control groups are found: cgroups(7) and proc_pid_mountinfo(5)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of those above it, as far as they are mounted here.

    Args:
        root: where ``/proc`` and the cgroups' file systems are found.
        controller: which hierarchy of version 1 is meant, "cpu" or "memory". Of version 2 there is one for all.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no Linux
        return
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in groups)}
    ours = {controller: path for controllers, path in paths.items() for controller in controllers.split(",")}
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        kind, _, options = right.split(" ", 2)
        mounted, point = left.split()[3:5]
        if kind == "cgroup2" and "" in ours:
            path = ours[""]
        elif kind == "cgroup" and controller in options.split(",") and controller in ours:
            path = ours[controller]
        else:
            continue
        # In a container the mount begins at the container's own group. A path may be the host's, or begin with "/..":
        # what lies there is not seen here.
        inside = path.removeprefix(mounted) if mounted != "/" else path
        inside = "" if ".." in inside else inside
        folder = root / point.lstrip("/") / inside.lstrip("/")
        top = root / point.lstrip("/")
        yield top
        while folder != top and folder.is_relative_to(top):
            yield folder
            folder = folder.parent
