"""The table of fields and its page are the same."""

from __future__ import annotations

from pathlib import Path

from mesh_middleware.routing.fields import FIELDS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "upstream_fields.md"
STORED = {"Kind", "Name", "Meta", "CreateIndex", "ModifyIndex", "Hash"}


def test_every_field_stands_in_the_reference_with_its_effect() -> None:
    """Kind by kind: no field is missing, none is there that the code does not know."""
    page: dict[str, dict[str, tuple[str, str]]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## `"):
            rows = page.setdefault(line.split("`")[1], {})
        elif line.startswith("| `"):
            path, effect, note = (cell.strip() for cell in line.strip("|").split("|"))
            rows[path.strip("`")] = (effect, note)
    known = {
        kind: {
            path: (field.effect, field.note) for path, field in fields.items() if path not in STORED
        }
        for kind, fields in FIELDS.items()
    }
    assert page == known


def test_what_has_no_effect_says_why() -> None:
    """A plain no would leave people guessing."""
    for fields in FIELDS.values():
        assert [
            path for path, field in fields.items() if field.effect != "yes" and not field.note
        ] == []
