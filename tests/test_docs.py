"""The repository reads itself: what is public is documented, and what is documented exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import typer.main

import mesh_middleware
from mesh_middleware import config, exceptions, hookspecs, httpx
from mesh_middleware.cli.commands import app
from mesh_middleware.intentions import Reason

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def hooks() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("mesh_")]


def errors() -> list[str]:
    found = [*vars(exceptions).values(), *(getattr(httpx, name) for name in httpx.__all__)]
    return [e.__name__ for e in found if inspect.isclass(e) and issubclass(e, Exception)]


def commands() -> list[str]:
    def walk(command: object, prefix: str) -> list[str]:
        children = getattr(command, "commands", None)
        if children is None:
            return [prefix]
        return [name for key, child in children.items() for name in walk(child, f"{prefix} {key}")]

    return walk(typer.main.get_command(app), "mesh")


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("reference/names.md", mesh_middleware.__all__),
        ("reference/settings.md", [*config.NAMES, *config._CONSUL_VARIABLES]),
        ("reference/hooks.md", hooks()),
        ("reference/errors.md", errors()),
        ("reference/reasons.md", [str(reason) for reason in Reason]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_name_is_in_the_reference(page: str, names: list[str]) -> None:
    """Each public name stands, in code type, on the page it belongs to."""
    text = read(page)
    assert names
    assert [n for n in names if not re.search(rf"`{re.escape(n)}[`(]", text)] == []


def test_every_command_is_in_the_reference() -> None:
    """Each command of ``mesh`` has its row."""
    text = read("reference/commands.md")
    assert [c for c in commands() if f"`{c}" not in text] == []


def test_every_status_key_and_note_is_in_the_reference() -> None:
    """What `Mesh.status` returns and what `Belief.note` is given is explained."""
    text = read("reference/status.md")
    mesh = mesh_middleware.Mesh("tax", plugins=())
    assert [key for key in mesh.status() if f"`{key}`" not in text] == []
    sources = ROOT / "src" / "mesh_middleware"
    code = "".join(path.read_text() for path in sources.glob("*.py"))
    notes = set(re.findall(r'note\(\s*"(\w+)"', code)) | set(
        re.findall(r'Verdict\(\s*[^"]*?"(\w+)",', code)
    )
    assert len(notes) > 5
    assert [note for note in notes if f"`{note}`" not in text and note != "leaf_waiting"] == []


def test_all_links_between_pages_lead_somewhere() -> None:
    """No page points to a file that is not there."""
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
