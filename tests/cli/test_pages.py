"""The pages for users: their Python runs, their TOML and their commands are real."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mesh_middleware.config import NAMES

from .conftest import Run

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs" / "how_to").glob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.md")]
PAGES += [*ROOT.glob("examples/*/README.md"), *ROOT.glob("plugins/*/README.md")]


def blocks(language: str) -> list[object]:
    """All blocks of *language* on all pages, named by page and number."""
    found = []
    for page in sorted(PAGES):
        texts = re.findall(
            rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
        )
        found += [
            pytest.param(text, id=f"{page.parent.name}/{page.stem}-{number}")
            for number, text in enumerate(texts, 1)
        ]
    return found


@pytest.mark.parametrize("text", blocks("python"))
def test_python_on_a_page_runs(text: str) -> None:
    """Each block is a module of its own: it imports what it names, and defines what it shows."""
    code = compile(text, "page", "exec")
    if "mesh.ready(10)\n    with" in text:
        return  # The tutorial's script needs a mesh: examples/test_tutorial.py runs it.
    exec(code, {"__name__": "page"})


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_on_a_page_names_real_settings(text: str) -> None:
    """Every key of a [mesh] table is a setting."""
    assert set(tomllib.loads(text).get("mesh", {})) <= set(NAMES)


@pytest.mark.parametrize("text", blocks("json"))
def test_json_on_a_page_is_json(text: str) -> None:
    """As it stands."""
    json.loads(text)


def _commands() -> list[str]:
    found = set()
    for page in PAGES:
        for line in re.findall(r"^\$ mesh ([a-z].*)$", page.read_text(), re.MULTILINE):
            words = line.split("#")[0].replace("&", " ").split()
            found.add(" ".join(word for word in words if word.isalpha())[:40])
    return sorted(found)


@pytest.mark.parametrize("line", _commands())
def test_a_command_on_a_page_exists(run: Run, line: str) -> None:
    """Its subcommand, and the one below it."""
    words = line.split()
    depth = 2 if words[0] == "intention" else 1
    assert run(*words[:depth], "--help")[0] == 0


EVERY = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *PAGES]
OTHERS = {"MESH_BIND", "MESH_DECISION_LOG"}
"""Variables of the server's door and of the plugin."""


def test_variables_on_the_pages_are_settings() -> None:
    """A misspelt one would have no effect."""
    named = {name for page in EVERY for name in re.findall(r"\bMESH_[A-Z_]+\b", page.read_text())}
    assert len(named) > 5
    assert named - OTHERS <= {f"MESH_{name.upper()}" for name in NAMES}


@pytest.mark.process
def test_hypercorn_on_the_pages_takes_what_it_is_given() -> None:
    """Each option of a ``hypercorn`` line is one of that command's, and its module is there."""
    asked = [sys.executable, "-m", "hypercorn", "--help"]
    known = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    lines = [
        line.split("#")[0]
        for page in EVERY
        for line in re.findall(r"^(?:\$| ) .*?hypercorn (--.*)$", page.read_text(), re.MULTILINE)
    ]
    assert len(lines) > 10
    given = {word for line in lines for word in re.findall(r"--?[a-z][\w-]*(?==| |$)", line)}
    assert {word for word in given if f"{word} " not in known and word.startswith("--")} == set()
    modules = {name for line in lines for name in re.findall(r"python:(\S+)", line)}
    assert modules and all(importlib.util.find_spec(name) for name in modules)


@pytest.mark.parametrize(
    "app",
    [*ROOT.glob("examples/*/[!t]*.py"), ROOT / "examples/flask_tax/tax.py"],
    ids=lambda app: app.name,
)
def test_an_example_app_is_short(app: Path) -> None:
    """Under sixty lines, or nobody reads it."""
    assert len(app.read_text().splitlines()) < 60
