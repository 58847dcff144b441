"""R7: under load while policy and certificates change; ``make soak`` is the long form."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware import Mesh
from mesh_middleware.certificates import Peer, utc_now
from mesh_middleware.dev import DevAgent
from mesh_middleware.doors import Door
from mesh_middleware.identity import parse_spiffe_id
from mesh_middleware.intentions import HttpFacts

from ..support.servers import PATIENCE, clean_environment
from .conftest import LONG

Join = Callable[..., Mesh]

ROOT = Path(__file__).parents[2]
SECONDS = 120.0 if LONG else 14.0


@pytest.mark.timeout(SECONDS + 60)
def test_r07_soak_fails_nothing_and_grows_nothing() -> None:
    """
    Twenty callers, new connections, flips of the policy and new leafs: no request fails.

    Nor is there one file, thread or task more in the end; how memory goes takes longer to tell.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", "--minutes", str(SECONDS / 60)],
        capture_output=True,
        text=True,
        timeout=SECONDS + 50,
        cwd=ROOT,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing failed, nothing grew" in done.stdout and "failed: none" in done.stdout


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module behind ``make soak``."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.soak")


def test_r07_growth_and_failures_are_told(soak: Any) -> None:
    """The judgement bites: a file more now and then, or a megabyte a minute, is growth."""

    def samples(**grows: float) -> list[Any]:
        start = {"memory": 60 * 2**20, "files": 20, "threads": 9, "tasks": 30}
        return [
            soak.Sample(5.0 * n, **{k: int(v + grows.get(k, 0) * n) for k, v in start.items()})
            for n in range(120)
        ]

    assert soak.faults(samples(), {}, 0) == []
    for what in ("files", "threads", "tasks"):
        assert soak.faults(samples(**{what: 0.1}), {}, 0) != [], what
    assert soak.faults(samples(memory=2**20 / 12), {}, 0) != []
    assert soak.faults(samples(memory=1000), {}, 0) == [], "half a megabyte an hour"
    assert soak.faults(samples(), {"order got 403": 1}, 0) != []
    assert soak.faults(samples(), {}, 1) != []


def test_r07_what_a_door_remembers_goes_with_its_policy(agent: DevAgent, join: Join) -> None:
    """Policies come and go for as long as a process lives; their decisions do not pile up."""
    mesh = join()
    assert mesh.ready(PATIENCE)
    door, facts = Door(mesh), HttpFacts(b"GET", b"/")
    callers = [caller(agent, name) for name in ("web", "order", "invoice")]
    for number in range(10):
        version = mesh.snapshot.version
        (agent.deny if number % 2 else agent.allow)("vat", "tax")
        assert mesh.wait_for(lambda s, v=version: s.version > v, PATIENCE)
        assert all(door.judge(each, facts, facts.key).passes for each in callers * 3)
        assert len(door._known) <= len(callers)


def caller(agent: DevAgent, name: str) -> Peer:
    """Somebody who is allowed to call."""
    uri = f"spiffe://{agent.trust_domain}/ns/default/dc/dc1/svc/{name}"
    return Peer(parse_spiffe_id(uri), "1", utc_now() + timedelta(days=1))
