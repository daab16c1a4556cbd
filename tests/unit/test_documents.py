"""What the documents say of the code, as far as it can be compared without running it."""

from __future__ import annotations

import re

from tests.documents.command_lines import DOCUMENTS, NOT_RUN, ROOT, command_lines
from tests.documents.settings_page import PAGE, page


def test_the_page_of_settings_is_that_of_the_settings() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.documents.settings_page"


def test_every_reason_not_to_run_a_line_is_needed() -> None:
    lines = [found.line for document in DOCUMENTS for found in command_lines(document)]
    assert [begin for begin in NOT_RUN if not any(line.startswith(begin) for line in lines)] == []


def test_the_readme_is_a_front_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert max(table.count("\n") for table in tables) <= 12 + 2


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{document}: {target}"
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / document).read_text(encoding="utf-8"))
        if not ((ROOT / document).parent / target).exists()
    ]
    assert broken == []
