"""The tutorial on calling other services, done as it is written: its scripts and its entries."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from mesh_middleware.dev import DevAgent

from .conftest import PATIENCE

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorials" / "calling_other_services.md").read_text()
BIN = Path(sys.executable).parent
FILES = ["--config", "mesh", "--bind", "127.0.0.1:0"]
VARIABLES = ["--config", "python:mesh_middleware.servers.hypercorn"]

Start = Callable[..., "subprocess.Popen[bytes]"]
Run = Callable[..., str]


def block(language: str, part: str) -> str:
    """The one block of *language* on the page that has *part* in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if part in text]
    return str(found)


@pytest.fixture
def start(mesh_agent: DevAgent) -> Iterator[Start]:
    """Serve the example tax by the arguments given, with more variables, until the test ends."""
    with contextlib.ExitStack() as stack:

        def serve(arguments: list[str], **variables: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [BIN / "hypercorn", *arguments, "tax:app"],
                cwd=ROOT / "examples" / "flask_tax",
                env={**os.environ, "MESH_AGENT": mesh_agent.url, **variables},
                start_new_session=True,
            )
            stack.callback(process.wait, PATIENCE)
            stack.callback(process.terminate)
            return process

        yield serve


@pytest.fixture
def run(mesh_agent: DevAgent, tmp_path: Path) -> Run:
    """Run a program in a folder of its own, and return what it prints."""

    def done(*command: str | Path) -> str:
        found = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "MESH_AGENT": mesh_agent.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    return done


def wait_for(count: int, service: str, agent: DevAgent) -> None:
    """Wait until so many instances pass."""
    url = f"{agent.url}/v1/health/connect/{service}?passing"
    end, pause = time.monotonic() + PATIENCE, threading.Event()
    while len(httpx.get(url, trust_env=False).json()) < count:
        assert time.monotonic() < end, f"no {count} instances of {service}"
        pause.wait(0.05)


def test_the_first_half_can_be_followed(mesh_agent: DevAgent, start: Start, run: Run) -> None:
    """A call, and the errors as the page prints them, before and after a deny."""
    start(FILES)
    wait_for(1, "tax", mesh_agent)
    answer = run(sys.executable, "-c", block("python", "print(answer.status_code"))
    assert "'tax': 38.0" in answer and answer.rstrip().endswith("/svc/tax")
    script = block("python", "for url in URLS")
    before, _, after = block("console", "intention create shop tax --deny").partition("$ python")
    shown = block("console", "https://tax/tax -> 200").splitlines()[1:]
    assert run(sys.executable, "-c", script).splitlines() == shown
    assert run(BIN / "mesh", *before.splitlines()[0].split()[2:]) == "shop -> tax: deny\n"
    assert run(sys.executable, "-c", script).splitlines() == after.splitlines()[1:]


@pytest.mark.timeout(180)
def test_the_second_half_can_be_followed(
    mesh_agent: DevAgent, start: Start, run: Run, tmp_path: Path
) -> None:
    """A canary gets the smaller share; who stands in proves to be who it is."""
    one, two = start(FILES), start(FILES, MESH_META="version=2")
    wait_for(2, "tax", mesh_agent)
    for name, part in (("canary.json", "service-splitter"), ("failover.json", "tax-backup")):
        (tmp_path / name).write_text(block("json", part))
    create = (BIN / "mesh", "intention", "create", "--file")
    assert run(*create, "canary.json").count(": written") == 3
    shares = run(sys.executable, "-c", block("python", "range(200)"))
    counts = sorted(int(count) for count in re.findall(r": (\d+)", shares))
    assert len(counts) == 2 and counts[0] < 60 and sum(counts) == 200
    for line in block("console", "-X DELETE").splitlines():
        url = mesh_agent.url + line.partition("localhost:8500")[2]
        assert httpx.delete(url, trust_env=False).status_code == 200, url
    start(VARIABLES, MESH_SERVICE="tax-backup", MESH_BIND="127.0.0.1:0")
    wait_for(1, "tax-backup", mesh_agent)
    run(*create, "failover.json")
    for process in (one, two):
        process.terminate()
        process.wait(PATIENCE)
    answer = run(sys.executable, "-c", block("python", "print(answer.status_code"))
    assert answer.rstrip().endswith("/svc/tax-backup")
