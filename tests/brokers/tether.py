"""Run a command that cannot outlive the process that started it: ``python tether.py PARENT_PID COMMAND...``.

A fixture's teardown does not run when its test run is killed, and a JVM left behind keeps its ports and memory. The
request to die with the parent has to be made in the child between fork and exec. Popen's preexec_fn would do that too,
but may deadlock once other threads run, as librdkafka's and torch's do; a few lines of Python before exec cannot.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from linux/prctl.h; exec keeps it


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request was made
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 (becoming the command is the purpose)


if __name__ == "__main__":
    main()
