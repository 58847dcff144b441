"""The tutorial, done as it is written: its script and its commands, on the three examples."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh_middleware.dev import DevAgent

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorials" / "first_steps.md").read_text()
BIN = Path(sys.executable).parent

Do = Callable[[str], str]


def block(language: str, part: str) -> str:
    """The one block of *language* on the page that has *part* in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if part in text]
    return str(found)


@pytest.fixture
def do(mesh_agent: DevAgent) -> Do:
    """Run the commands of the console block with *part* in it, and return what they print."""

    def run(part: str) -> str:
        said = ""
        for line in block("console", part).splitlines():
            command = line.removeprefix("$ ")
            path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                command,
                shell=True,
                cwd=ROOT,
                env={**os.environ, "PATH": path, "MESH_AGENT": mesh_agent.url},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            said += f"{done.stdout}{done.stderr}({done.returncode})\n"
        return said

    return run


@pytest.fixture
def shop(mesh_agent: DevAgent) -> Callable[[], str]:
    """Run the tutorial's script as it stands."""

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", block("python", 'Mesh("shop"')],
            env={**os.environ, "MESH_AGENT": mesh_agent.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_tutorial_can_be_followed(serve, do: Do, shop: Callable[[], str]) -> None:
    """Each thing it says will be seen is seen."""
    serve("tax", "invoice", "order")
    status = do("mesh status")
    assert all(f"{name}-" in status for name in ("tax", "invoice", "order"))
    answer = shop()
    assert "'gross': 119.0" in answer
    assert all(f"/svc/{name}'" in answer for name in ("shop", "order", "invoice"))
    assert do("tax --deny").endswith("(0)\n")
    assert "invoice: tax" in shop() and "denied by intention or default policy" in shop()
    assert "deleted\n(0)" in do("intention delete")
    assert "'gross'" in shop()
    assert "allow GET /tax" in do("flask_tax/intentions.json")
    assert "'gross'" in shop()


def test_the_tutorials_mesh_file_is_the_examples() -> None:
    """What the page shows is what the directory has, but for its comments."""
    shown = block("toml", "[mesh]")
    real = (ROOT / "examples" / "flask_tax" / "mesh").read_text()
    bare = re.sub(r"\s*#.*", "", real, flags=re.MULTILINE)
    assert bare.split() == shown.split()
