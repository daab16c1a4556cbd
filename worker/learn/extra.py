"""The packages of the extra ``learn``: imported where they are needed, and missed with a clear word."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from worker.errors import SettingsError

_PACKAGES: Final = {"scikit-learn": "sklearn", "matplotlib": "matplotlib", "peft": "peft", "accelerate": "accelerate"}


def require(*packages: str) -> None:
    """See that packages of the extra are there, before anything is loaded that takes its time. All, if none is named.

    Raises:
        SettingsError: one is not.
    """
    missing = [name for name in packages or _PACKAGES if find_spec(_PACKAGES[name]) is None]
    if missing:
        raise SettingsError(f"{', '.join(missing)} is not installed: pip install 'xnli-worker[learn]'")
