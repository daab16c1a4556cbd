"""`python -m worker`, and what the demo starts by this file's path: neither finds modules in the current folder."""

from __future__ import annotations

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, or this one, where http is not Python's

from pathlib import Path

# Last, for a worker that is not installed: run from a checkout.
sys.path.append(str(Path(__file__).parents[1]))

from worker.cli import main

if __name__ == "__main__":
    sys.exit(main())
