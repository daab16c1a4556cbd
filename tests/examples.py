"""How many examples Hypothesis tries. The profile ``suite`` finds most bugs within seconds; ``acceptance`` tries more.

``pytest --hypothesis-profile=acceptance`` chooses the other one, as `make acceptance` does. In CI the examples are the
same on every run: a suite that must be green before anything lands explores nothing new.
"""

from __future__ import annotations

import os
from typing import Final

from hypothesis import settings

SUITE: Final = 100
LONGER: Final = 10


def load_profiles() -> None:
    """Make both profiles known, and load that of the suite. No test has a deadline: a busy machine is no bug."""
    is_ci = os.environ.get("CI", "").lower() == "true"
    settings.register_profile("suite", max_examples=SUITE, deadline=None, derandomize=is_ci)
    settings.register_profile("acceptance", settings.get_profile("suite"), max_examples=LONGER * SUITE)
    settings.load_profile("suite")


def examples(count: int) -> int:
    """For ``@settings(max_examples=...)``: ``count`` in the suite, and `LONGER` times as many for acceptance."""
    return count * settings.default.max_examples // SUITE if settings.default else count
