"""`schemas show`."""

from __future__ import annotations

from typing import Final

from worker.usage import grouping
from worker.usage.options import Json

app: Final = grouping.group("The Avro schemas of requests and results.", name="schemas")


@grouping.command(app, "show", examples=["xnli-worker schemas show"])
def show(as_json: Json = False) -> int:
    """Print the schemas and their fingerprints."""
    from worker.commands import schema_listing  # noqa: PLC0415

    schema_listing.show(as_json=as_json)
    return 0
