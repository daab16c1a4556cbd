"""`xnli-worker schemas show`: the Avro schemas that the worker reads and writes, for generators of code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from worker.avro.codec import REQUEST, RESULT, schema_folder
from worker.avro.schema_walk import schema
from worker.commands.json_lines import is_wanted


def show(*, as_json: bool) -> None:
    """Write each schema with its name, its file and its fingerprint.

    The fingerprint is CRC-64-AVRO of the parsing canonical form, 16 hex digits in the byte order of the wire: what
    follows ``C3 01`` in Avro's single-object encoding.
    """
    for file in (REQUEST, RESULT):
        path: Path = schema_folder() / file
        text = path.read_text(encoding="utf-8")
        known = schema(text, reader=True)
        if is_wanted(as_json):
            shown = {"name": known.name, "fingerprint": known.fingerprint, "schema": json.loads(text)}
            sys.stdout.write(json.dumps(shown, ensure_ascii=False) + "\n")
        else:
            sys.stdout.write(f"{known.name}  fingerprint {known.fingerprint}  {path}\n{text.rstrip()}\n\n")
