"""The pages on judging say what the code says."""

from __future__ import annotations

import re

import pytest

from mesh_middleware.intentions import Reason
from tests.support import pages


@pytest.mark.parametrize("name", pages.PAGES)
def test_tables_in_the_docs_are_those_of_the_code(name: str) -> None:
    """Reasons, readings and fields are written from the code: python -m tests.support.pages."""
    text = (pages.DOCS / name).read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert text == pages.filled(text)


def test_every_table_stands_on_a_page() -> None:
    """A table that no page shows would help nobody."""
    texts = [(pages.DOCS / name).read_text(encoding="utf-8") for name in pages.PAGES]
    shown = {name for text in texts for name in re.findall(r"<!-- table: (\w+) -->", text)}
    assert shown == set(pages.tables())


def test_every_reason_has_a_paragraph() -> None:
    """Each code has a heading of its own, in the order of the code, and text below it."""
    text = (pages.DOCS / "reference/reasons.md").read_text(encoding="utf-8")
    found = re.findall(r"^### `(\w+)`\n\n(\S.+)", text, re.MULTILINE)
    assert [code for code, _ in found] == [str(reason) for reason in Reason]
