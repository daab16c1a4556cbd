"""Writes docs/settings.md from the settings: ``python -m tests.documents.settings_page``. A test compares."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from worker.settings import PREFIX, Section, Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

_HEAD = f"""# Settings

This page is made of the settings themselves by `python -m tests.documents.settings_page`.

Settings come from a TOML file (`--config worker.toml`) and from the environment as `{PREFIX}<SECTION>__<KEY>`, which
wins. Unknown keys are errors. What Kubernetes and Docker inject for a Service called `xnli` is passed over. In the
environment a list is `a,b` or JSON, and a map is JSON. Maps are merged key by key.

Secrets may be files of the folder that `XNLI_SECRETS_DIR` names: `schema_registry__password`, or
`kafka__properties__sasl.password` for one key of a map.

`xnli-worker config init` writes a commented file, `config show` prints what is in force and where it comes from, and
`config schema` prints a JSON Schema for editors.
"""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{str(value).replace('|', chr(92) + '|')}`"


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


def page() -> str:
    """The whole page."""
    lines = [_HEAD]
    for name, found in Settings.model_fields.items():
        section = cast("type[Section]", found.annotation)
        first = (section.__doc__ or "").partition("\n\n")[0].replace("``", "`")
        lines += [f"## {name}", "", " ".join(first.split()), "", "| key | default | meaning |", "|---|---|---|"]
        for key, field in section.model_fields.items():
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            secret = " A secret." if _is_secret(field) else ""
            lines.append(f"| `{key}` | {_default(field)} | {meaning}{secret} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
