"""Writes schemas/label-set.schema.json from the models: ``python -m tests.documents.label_set_schema``."""

from __future__ import annotations

import json
from pathlib import Path

from worker.label_sets import record

FILE = Path(__file__).resolve().parents[2] / "schemas" / "label-set.schema.json"

if __name__ == "__main__":
    FILE.write_text(json.dumps(record.json_schema(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
