"""The repository reads itself: what is public is documented, and what is documented exists."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import shlex
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
from flask import Flask
from starlette.applications import Starlette

import mesh_middleware
from mesh_middleware import config, exceptions, hookspecs, httpx, refusals
from mesh_middleware.cli.commands import app
from mesh_middleware.dev import faults
from mesh_middleware.intentions import Reason

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCES = ROOT / "src" / "mesh_middleware"
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")))


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


@functools.cache
def notes() -> set[str]:
    """Codes of what is given to `Belief.note`, and of answers that were not simply taken."""
    found = set()
    texts = [file.read_text(encoding="utf-8") for file in SOURCES.rglob("*.py")]
    told = [ast.parse(text) for text in texts if re.search(r"note\(|Verdict\(", text)]
    for node in (node for tree in told for node in ast.walk(tree)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        place = {"note": 0, "_note": 0, "Verdict": 1}.get(name)
        if place is None or len(node.args) <= place:
            continue
        code = node.args[place]
        if isinstance(code, ast.Constant) and isinstance(code.value, str):
            found.add(code.value)
    return {code for code in found if re.fullmatch(r"[a-z]+(_[a-z]+)+", code)}


def troubles() -> set[str]:
    """Codes of what keeps the agent's answers away."""
    files = ("exceptions.py", "following.py", "consul/client.py", "supervision.py")
    nodes = (n for name in files for n in ast.walk(ast.parse((SOURCES / name).read_text())))
    words = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {
        w
        for w in words
        if re.fullmatch(r"agent_[a-z]+|token_unusable|instance_taken|watch_[a-z]+|defect", w)
        for w in words
        if re.fullmatch(r"agent_[a-z]+|token_unusable|instance_taken|watch_[a-z]+|defect", w)
    } - notes()


def test_every_status_key_and_note_is_in_the_reference() -> None:
    """What `Mesh.status` returns, and every code of a note or trouble, is explained."""
    text = read("reference/status.md")
    mesh = mesh_middleware.Mesh("tax", plugins=())
    assert [key for key in mesh.status() if f"`{key}`" not in text] == []
    assert len(notes()) >= 17 and len(troubles()) >= 9
    assert [code for code in sorted(notes() | troubles()) if f"| `{code}` |" not in text] == []


def test_every_logger_is_in_the_reference() -> None:
    """Who configures logging finds all their names on one page."""
    texts = "".join(file.read_text(encoding="utf-8") for file in SOURCES.rglob("*.py"))
    names = set(re.findall(r'getLogger\("(mesh_middleware\.\w+)"\)', texts))
    text = read("reference/status.md")
    assert len(names) > 8
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_the_runbook_has_a_section_for_every_code() -> None:
    """Each reason, note, trouble and refused handshake has a heading, and no heading is of none."""
    sections = re.split(r"^### ", read("how_to/runbook.md"), flags=re.MULTILINE)[1:]
    found = [section.partition("\n")[0].strip("`") for section in sections]
    codes = {str(reason) for reason in Reason} | notes() | troubles() | set(refusals.CODES)
    assert sorted(found) == sorted(codes)
    lacking = [
        f"{code}: {part}"
        for code, section in zip(found, sections, strict=True)
        for part in ("**Means**", "**Confirm**", "**Do**")
        if part not in section
    ]
    assert lacking == []


def targets(page: Path) -> list[tuple[Path, str]]:
    """Where the links of a page lead: file and anchor."""
    found = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))
    return [
        ((page.parent / file) if file else page, anchor)
        for file, anchor in found
        if "://" not in file
    ]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_all_links_between_pages_lead_somewhere() -> None:
    """No page points to a file that is not there."""
    broken = [
        f"{page.relative_to(ROOT)}: {file}"
        for page in PAGES
        for file, _ in targets(page)
        if not file.exists()
    ]
    assert broken == []


def test_all_anchors_are_headings() -> None:
    """No page points to a heading that is not there."""
    broken = [
        f"{page.relative_to(ROOT)}: {file.name}#{anchor}"
        for page in PAGES
        for file, anchor in targets(page)
        if anchor and file.suffix == ".md" and file.exists() and anchor not in anchors(file)
    ]
    assert broken == []


def blocks(language: str) -> list[tuple[str, str]]:
    """Every code block of *language*: the page's name and its text."""
    return [
        (str(page.relative_to(ROOT)), textwrap.dedent(text))
        for page in PAGES
        for text in re.findall(
            rf"^ *```{language}\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.M | re.S
        )
    ]


def test_python_on_the_pages_runs() -> None:
    """Each block is whole: it imports what it uses. Those that call at once are only compiled."""
    assert len(blocks("python")) > 20
    for page, text in blocks("python"):
        code = compile(text, page, "exec")
        if re.search(r"^(with|for|print)\b", text, re.MULTILINE):
            continue
        space = {"__name__": page}
        if "FastAPI(" not in text and "Flask(" not in text and "Starlette(" not in text:
            space["app"] = Flask("app") if "MeshNative" in text else Starlette()
        exec(code, space)


def test_data_on_the_pages_can_be_read() -> None:
    """JSON and TOML blocks parse, and what a ``[mesh]`` table says are settings."""
    for page, text in blocks("json"):
        assert json.loads(text) is not None, page
    tables = [(page, tomllib.loads(text)) for page, text in blocks("toml")]
    assert len(tables) > 5
    unknown = [
        f"{page}: {name}"
        for page, table in tables
        for name in table.get("mesh", {})
        if name not in config.NAMES
    ]
    assert unknown == []


def test_commands_on_the_pages_exist() -> None:
    """Each ``$ mesh ...`` names a command, and options that it has."""
    lines = [line for _, text in blocks("console") for line in text.splitlines()]
    typed = [line.split("#")[0] for line in lines if re.match(r"\$ mesh ", line)]
    assert len(typed) > 10
    wrong = []
    for line in typed:
        words = shlex.split(line.removeprefix("$ mesh "), posix=True)
        command: Any = typer.main.get_command(app)
        while words and hasattr(command, "commands"):
            command = command.commands.get(words.pop(0))
        known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        given = [w for w in words if w.startswith("-") and not w.lstrip("-").isdigit()]
        wrong += [f"{line}: {option}" for option in given if option not in known]
    assert wrong == []


def test_every_make_target_is_in_the_reference() -> None:
    """``make`` does nothing that the page on commands does not tell, and nothing else is told."""
    made = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    told = re.findall(r"^\| `make ([\w-]+)", read("reference/commands.md"), re.MULTILINE)
    assert sorted(told) == sorted(made)


def test_every_fixture_and_fault_is_on_the_page_about_testing() -> None:
    """What users' tests get from the plugin, and what can go wrong on purpose."""
    text = read("how_to/testing.md")
    nodes = ast.parse((SOURCES / "pytest_plugin.py").read_text()).body
    fixtures = [n.name for n in nodes if isinstance(n, ast.FunctionDef) and n.decorator_list]
    assert len(fixtures) >= 4
    places = [place for place in faults.ON if place]
    assert [n for n in (*fixtures, *faults.KINDS, *places) if f"`{n}`" not in text] == []


def test_every_option_of_a_command_is_in_the_reference() -> None:
    """Each option of ``mesh`` stands on the page, but for help."""
    text = read("reference/commands.md")
    lacking = []
    for name in commands():
        command: Any = typer.main.get_command(app)
        for word in name.split()[1:]:
            command = command.commands[word]
        options = [opt for p in command.params for opt in (*p.opts, *p.secondary_opts)]
        lacking += [
            f"{name} {opt}"
            for opt in options
            if opt.startswith("--") and opt != "--help" and not re.search(rf"`{opt}[` ]", text)
        ]
    assert lacking == []


def test_every_test_that_a_page_names_exists() -> None:
    """A claim is worth the test behind it: file and function are there."""
    named = [
        (str(page.relative_to(ROOT)), *found)
        for page in PAGES
        for found in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text("utf-8"))
    ]
    assert len([test for _, _, test in named if test]) > 60
    missing = [
        f"{page}: {file}::{test}"
        for page, file, test in named
        if not (ROOT / file).exists()
        or (test and not re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.M))
    ]
    assert missing == []


def test_every_extra_is_in_the_readme() -> None:
    """Each has its row, and no row is of none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    text = (ROOT / "README.md").read_text("utf-8").partition("| extra |")[2]
    told = re.findall(r"`([a-z0-9]+)`", "".join(re.findall(r"^\| .*?\|", text, re.M)))
    mentioned = re.findall(r"`([a-z0-9]+)`", text.partition("## Read on")[0])
    assert set(told) <= set(project["optional-dependencies"]) <= set(mentioned)


def test_every_page_can_be_found_from_the_readme() -> None:
    """A page that nothing links to is read by nobody."""
    linked = {file.resolve() for file, _ in targets(ROOT / "README.md")}
    assert [str(page.relative_to(ROOT)) for page in PAGES[2:] if page not in linked] == []


def test_every_example_has_a_page_that_names_it() -> None:
    """Each folder of examples, and each plugin, has a README of its own."""
    folders = [*(ROOT / "examples").iterdir(), *(ROOT / "plugins").iterdir()]
    made = [folder for folder in folders if folder.is_dir() and not folder.name.startswith("_")]
    assert len(made) >= 4
    assert [folder.name for folder in made if not (folder / "README.md").exists()] == []
