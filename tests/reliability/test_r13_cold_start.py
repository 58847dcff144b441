"""R13: a process that starts while the agent is away, with and without its last known good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mesh_middleware import Mesh
from mesh_middleware.dev import DevAgent
from mesh_middleware.intentions import HttpFacts

from ..interop.callers import outsider_context
from ..support.handshakes import Ends
from ..support.servers import PATIENCE, until
from .clock import Clock
from .test_r04_outage import peer

KEY = "ab" * 32
GET = HttpFacts(b"GET", b"/")
Join = Callable[..., Mesh]


@pytest.fixture
def file(agent: DevAgent, tmp_path: Path) -> Path:
    """The file that a process of service tax has left, with a deny in it; the agent is gone."""
    path = tmp_path / "kept"
    agent.deny("web", "tax")
    with Mesh("tax", agent=agent.url, keep_file=str(path), keep_key=KEY) as mesh:
        assert mesh.wait_for(lambda s: s.ready and bool(s.intentions), PATIENCE)
        until(path.exists, "the file")
        until(lambda: mesh._watcher is not None and not mesh._watcher._keep_now.is_set(), "saved")
    agent.close()
    return path


def test_r13_without_a_file_no_handshake_succeeds_until_the_agent_is_there(
    agent: DevAgent, join: Join
) -> None:
    """It joins by itself, within seconds of the agent's return."""
    agent.close()
    mesh = join()
    until(lambda: mesh.status()["troubles"], "trouble")
    assert not mesh.ready() and mesh.snapshot.leaf is None
    order = outsider_context("".join(agent.issue("order")))
    context = mesh.server_context()
    refused = Ends(order, context).shake()
    assert refused.server_error is not None and refused.client_error is not None
    agent.start()
    assert mesh.ready(5.0)
    assert Ends(order, context).shake().well, "the same context, as a server has it"


def test_r13_valid_file_serves_at_once(agent: DevAgent, join: Join, file: Path) -> None:
    """Identity and policy of before, the deny included; what the agent says later replaces it."""
    mesh = join(keep_file=str(file), keep_key=KEY)
    assert mesh.ready(), "without waiting"
    assert not mesh.decide(peer(agent, Clock()), GET).allowed
    assert mesh.status()["events"]["keepsake_restored"] == 1
    agent.start()
    agent.delete("web", "tax")
    assert mesh.wait_for(lambda s: s.intentions == (), PATIENCE)


@pytest.mark.parametrize("what", ["tampered", "wrong key", "expired leaf", "too old"])
def test_r13_unsound_file_is_refused(agent: DevAgent, join: Join, file: Path, what: str) -> None:
    """Changed, sealed with another key, of a leaf that has expired, or too old: not believed."""
    clock, options = Clock(), {"keep_file": str(file), "keep_key": KEY}
    if what == "tampered":
        content = bytearray(file.read_bytes())
        content[-20] ^= 1
        file.write_bytes(content)
    elif what == "wrong key":
        options["keep_key"] = "cd" * 32
    else:
        clock.set(73 * 3600.0)
        options["keep_max_age"] = "1000h" if what == "expired leaf" else "1h"
    mesh = join(clock=clock, **options)
    assert mesh.snapshot.leaf is None and not mesh.ready()
    assert "keepsake_refused" in mesh.status()["events"]
    assert "keepsake_restored" not in mesh.status()["events"]
    assert mesh.snapshot.intentions is None, "none of it, not half of it"
