"""R8: an agent that is paused, resets, cannot be found, or refuses; a disk that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from mesh_middleware import Mesh
from mesh_middleware.dev import Answer, DevAgent, Request

from ..support.servers import PATIENCE, until
from .test_r03_agent_away import RECOVERY, act

Join = Callable[..., Mesh]

BAD = ["expired", "mismatch", "empty", "foreign", "wrong", "truncated", "cut", "huge", "gzip"]


@pytest.mark.parametrize("kind", BAD)
def test_r08_bad_answer_never_replaces_a_good_one(agent: DevAgent, join: Join, kind: str) -> None:
    """
    Leaf, roots and intentions are told anew, wrong: nothing is believed, and a code says so.

    Afterwards the right ones are, within seconds, without a restart.
    """
    agent.deny("web", "tax")
    mesh = join(max_answer_bytes=1_000_000)
    assert mesh.ready(PATIENCE)
    before = mesh.snapshot
    on = {"expired": "leaf", "mismatch": "leaf", "empty": "roots", "foreign": "roots"}.get(kind, "")
    fault = agent.faults.begin(kind, on)
    agent.renew("tax")
    agent.rotate_ca()
    status = mesh.status
    codes = {"expired": "leaf_rejected", "mismatch": "leaf_rejected", "empty": "roots_rejected",
             "foreign": "roots_waiting"}  # fmt: skip
    wanted = codes.get(kind)
    until(lambda: wanted in status()["events"] if wanted else status()["troubles"], "the code")
    leaf, roots = mesh.snapshot.leaf, mesh.snapshot.roots
    assert mesh.ready() and leaf is not None and roots is not None
    assert roots.trust_domain == agent.trust_domain
    if on != "roots":
        assert leaf == before.leaf
    assert mesh.snapshot.intentions == before.intentions, "denies hold"
    fault.end()
    agent.renew("tax")
    last = agent.state.leaves["tax"].leaf.chain_pem
    assert mesh.wait_for(lambda s: s.leaf is not None and s.leaf.chain_pem == last, PATIENCE)
    assert mesh.wait_for(lambda s: s.roots is not None and len(s.roots.certificates) == 2, PATIENCE)


@pytest.mark.parametrize("poll", [0.0, 0.1], ids=["blocking", "polling"])
def test_r08_denies_survive_an_index_that_goes_backwards(
    agent: DevAgent, join: Join, poll: float
) -> None:
    """Servers restored from nothing tell no denies: believed when told twice, seconds apart."""
    agent.deny("web", "tax")
    mesh = join(poll=poll)
    assert mesh.wait_for(lambda s: bool(s.intentions), PATIENCE)
    agent.close()
    agent.delete("web", "tax")
    agent.faults.begin("regress")
    agent.start()
    until(lambda: "denies_vanished" in mesh.status()["events"], "the doubt")
    assert mesh.snapshot.intentions, "the deny still holds"
    assert mesh.wait_for(lambda s: s.intentions == (), PATIENCE), "and the second answer counts"


def test_r08_denies_hold_that_were_told_without_an_index(agent: DevAgent, join: Join) -> None:
    """
    Consul 1.8 tells them without one. It dies before it has told the list's, and is rebuilt.

    No index went backwards that was ever known: vanished denies are doubted all the same.
    """
    rebuilt = False
    deny = {"SourceName": "web", "DestinationName": "tax", "Action": "deny", "Precedence": 9}

    async def old(request: Request) -> Answer | None:
        if request.path == "/v1/connect/intentions/match":
            return Answer({"tax": None if rebuilt else [deny]}, consistent=True)
        if request.path == "/v1/connect/intentions":
            return Answer([], index=9) if rebuilt else Answer("No cluster leader", 500)
        return None

    agent.interpose = old
    mesh = join()
    assert mesh.wait_for(lambda s: bool(s.intentions), PATIENCE)
    until(lambda: "intentions" in mesh.status()["troubles"], "a list that is not told")
    rebuilt = True
    until(lambda: "denies_vanished" in mesh.status()["events"], "the doubt")
    assert mesh.snapshot.intentions
    assert mesh.wait_for(lambda s: s.intentions == (), PATIENCE), "told twice"


def test_r08_revoked_token_keeps_the_last_good(agent: DevAgent, join: Join) -> None:
    """403 everywhere: fail static, told with what is missing, critical by the TTL's own end."""
    mesh = join(port=4711)
    assert mesh.ready(PATIENCE)
    until(lambda: mesh.status()["registered"], "the registration")
    agent.faults.begin("forbid")
    until(lambda: len(mesh.status()["troubles"]) >= 3, "refusals")
    told = mesh.status()["troubles"]
    assert all(text.startswith("agent_refused: ") for text in told.values())
    assert 'service:write on "tax"' in told["leaf"]
    assert mesh.ready() and mesh.outage_budget() > 70 * 3600
    agent.faults.end()
    assert act(agent, mesh, True) < 16.0, "the longest backoff after a refusal"


def test_r08_agent_that_cannot_be_found(join: Join) -> None:
    """A name that no DNS knows: said so, and nothing else goes wrong."""
    mesh = join("http://agent.invalid:8500")
    until(lambda: mesh.status()["troubles"], "trouble")
    assert next(iter(mesh.status()["troubles"].values())).startswith("agent_unreachable: ")
    assert not mesh.ready()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The dev agent as a process of its own, which signals can stop."""
    code = (
        "import sys; from mesh_middleware.dev import DevAgent\n"
        "with DevAgent() as a: print(a.url, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        try:
            yield child, child.stdout.readline().strip()
        finally:
            os.kill(child.pid, signal.SIGCONT)
            child.stdin.close()
            child.wait(PATIENCE)


def test_r08_paused_agent(process: tuple[subprocess.Popen[str], str], join: Join) -> None:
    """SIGSTOP: silence on every connection, and calls go on; SIGCONT: within five seconds."""
    child, url = process
    mesh = join(url, port=4711)
    assert mesh.ready(PATIENCE)
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: mesh.status()["troubles"], "the agent's silence", 20.0)
    assert next(iter(mesh.status()["troubles"].values())).split(":")[0] in (
        "agent_stalled",
        "agent_unreachable",
    )
    assert mesh.ready()
    os.kill(child.pid, signal.SIGCONT)
    httpx.put(
        f"{url}/v1/connect/intentions/exact?source=web&destination=tax",
        json={"Action": "deny"},
        timeout=PATIENCE,
    )
    assert mesh.wait_for(lambda s: bool(s.intentions), RECOVERY)


KEY = "ab" * 32


@pytest.mark.parametrize("where", ["full disk", "no permission"])
def test_r08_cache_that_cannot_be_written_is_told(
    agent: DevAgent, join: Join, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last known good is a help, not a need: the mesh runs on, and a code says why."""
    if where == "full disk":
        monkeypatch.setattr("os.fsync", _full)
        file = tmp_path / "kept"
    else:
        file = tmp_path / "nowhere" / "kept"
    mesh = join(keep_file=str(file), keep_key=KEY)
    assert mesh.ready(PATIENCE)
    until(lambda: "keepsake_not_saved" in mesh.status()["events"], "the note")
    assert mesh.ready() and not file.exists()
    assert [path.name for path in tmp_path.iterdir()] == [], "nothing half-written stays"


def _full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")
