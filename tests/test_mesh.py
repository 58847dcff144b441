"""The heart: life, verdicts, listeners, and what it tells of itself."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware import Mesh, hookimpl
from mesh_middleware.config import load_settings
from mesh_middleware.dev import DevAgent
from mesh_middleware.exceptions import ConfigError, MeshError, NotReadyError
from mesh_middleware.intentions import HttpFacts, Reason
from mesh_middleware.mesh import default_mesh, running_mesh, set_default_mesh

from .support.doors import Inside, secrets_of
from .support.handshakes import Ends
from .support.servers import PATIENCE, clean_environment, until

CALL = HttpFacts(b"GET", b"/who", [(b"host", b"tax")])


class Clock:
    """Our clock, which the test sets."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    """An agent that allows by default."""
    with DevAgent() as agent:
        yield agent


def test_settings_come_ready_or_as_options() -> None:
    """Not both, since one would be ignored."""
    settings = load_settings({"service": "tax"}, environ={})
    assert Mesh(settings=settings).settings is settings
    with pytest.raises(ConfigError, match="not both"):
        Mesh("tax", settings=settings)
    with pytest.raises(ConfigError, match="not both"):
        Mesh(settings=settings, port=1)


def test_making_one_is_inert(agent: DevAgent) -> None:
    """No thread, nothing believed, everything refused; closing what never ran is fine."""
    before = threading.active_count()
    mesh = Mesh("tax", agent=agent.url)
    assert threading.active_count() == before and not mesh.running
    assert mesh.decide(None, CALL).reason is Reason.NO_PEER
    assert not mesh.ready() and mesh.outage_budget() == 0.0
    with pytest.raises(NotReadyError):
        mesh.watch_upstream("order")
    mesh.withdraw()
    mesh.close()
    assert repr(mesh) == f"<Mesh tax at {agent.url}>"


class Restart:
    """A plugin in whose process another thread starts the mesh while the first closes it."""

    def __init__(self) -> None:
        self.mesh: Mesh | None = None

    @hookimpl
    def mesh_registration(self, service_id: str, registered: bool) -> None:
        if self.mesh is not None and not registered:
            thread = threading.Thread(target=self.mesh.start)
            self.mesh = None
            thread.start()
            thread.join(PATIENCE)


def test_a_start_while_it_closes_is_a_start(agent: DevAgent) -> None:
    """The mesh runs then, and another close ends all of it: no thread keeps a registration."""
    before, plugin = threading.active_count(), Restart()
    with Mesh("tax", agent=agent.url, port=1, plugins=(plugin,)) as mesh:
        assert mesh.ready(PATIENCE)
        until(lambda: mesh.status()["registered"], "the registration")
        plugin.mesh = mesh
        mesh.close()
        assert plugin.mesh is None
        assert mesh.running and mesh.ready(PATIENCE)
    assert not mesh.running
    assert threading.active_count() == before


def test_starting_twice_is_starting_once(agent: DevAgent) -> None:
    """One watcher, in ``with`` too."""
    with Mesh("tax", agent=agent.url) as mesh:
        watcher = mesh._watcher
        assert mesh.start() is mesh and mesh._watcher is watcher
        assert mesh.ready(PATIENCE)
    assert not mesh.running


def test_waiting_is_bounded(agent: DevAgent) -> None:
    """A condition that never holds ends the wait, with ``False``."""
    with Mesh("tax", agent=agent.url) as mesh:
        assert mesh.ready(PATIENCE)
        began = time.monotonic()
        assert not mesh.wait_for(lambda seen: False, 0.05)
        assert 0.04 < time.monotonic() - began < 5


def test_the_end_of_a_peers_certificate_ends_its_requests() -> None:
    """On a connection that still lives, judged by our clock."""
    clock = Clock()
    with Inside(clock=clock) as inside:
        peer = inside.peer()
        assert inside.mesh.decide(peer, CALL).allowed
        clock.ahead = peer.expires - time.time() + 1
        assert inside.mesh.decide(peer, CALL).reason is Reason.PEER_EXPIRED


def test_the_end_of_our_own_leaf_ends_all() -> None:
    """What we serve with has ended: 503, a check that is critical, and no budget left."""
    clock = Clock()
    with Inside(clock=clock) as inside:
        peer = inside.peer()
        later = type(peer)(peer.id, peer.serial_number, peer.not_after.replace(year=2100))
        inside.agent.close()
        assert inside.mesh.outage_budget() > 3600
        clock.ahead = 100 * 3600.0
        verdict = inside.mesh.decide(later, CALL)
        assert (verdict.reason, verdict.status) == (Reason.LEAF_EXPIRED, 503)
        assert inside.mesh.outage_budget() == 0.0


def test_denials_are_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A caller that asks a thousand times fills no log; each kind of denial is told."""
    with Inside(agent={"default_policy": "deny"}) as inside:
        peer = inside.peer()
        with caplog.at_level(logging.WARNING, "mesh_middleware.decision"):
            for _ in range(100):
                inside.mesh.decide(peer, CALL)
                inside.mesh.decide(None, CALL)
        assert [r.getMessage().split()[:2] for r in caplog.records] == [
            ["denied", f"{peer.id.uri}:"],
            ["denied", "nobody:"],
        ]
        counts = inside.mesh.status()["decisions"]
        assert counts == {"default_deny": 100, "no_peer": 100}
        assert 'reason="default_deny"' in inside.mesh.metrics()


class Restricting:
    """A plugin that says no to one path, and notes what was decided."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def mesh_restrict(self, source: Any, facts: Any) -> bool | None:
        return False if facts.path == b"/no" else None

    @hookimpl
    def mesh_decision(self, decision: Any, source: Any, facts: Any) -> None:
        self.seen.append((decision.reason, source.name if source else None))


def test_a_plugin_restricts_what_is_allowed_and_nothing_else() -> None:
    """It turns yes into no, never the reverse, and hears of every verdict."""
    plugin = Restricting()
    with Inside(plugins=[plugin]) as inside:
        peer = inside.peer()
        no = HttpFacts(b"GET", b"/no", [(b"host", b"tax")])
        assert inside.mesh.decide(peer, CALL).allowed
        assert inside.mesh.decide(peer, no).reason is Reason.PLUGIN_RESTRICTED
        assert inside.mesh.decide(None, CALL).reason is Reason.NO_PEER
    assert plugin.seen == [
        (Reason.DEFAULT_ALLOW, "invoice"),
        (Reason.PLUGIN_RESTRICTED, "invoice"),
        (Reason.NO_PEER, None),
    ]


class Listener:
    """Somebody who is told of changes."""

    def __init__(self) -> None:
        self.told = threading.Event()

    def hear(self) -> None:
        self.told.set()


def test_listeners_are_told_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """After a change, each; one that fails keeps no other from it, one that is gone is let go."""

    def fail() -> None:
        raise ValueError("a listener's defect")

    with Inside() as inside:
        gone, stays = Listener(), Listener()
        for told in (gone.hear, fail, stays.hear):
            inside.mesh.after_change(told)
        del gone, told
        gc.collect()
        inside.agent.deny("invoice", "tax")
        assert stays.told.wait(PATIENCE)
        assert len(inside.mesh._listeners) == 2
    assert "a listener failed after a change" in caplog.text


def test_refused_in_the_handshake_where_that_is_wanted() -> None:
    """``deny_in_handshake``: who may send nothing does not connect; who may something does."""
    with Inside(deny_in_handshake=True) as inside:
        inside.connect("order")
        inside.agent.deny("order", "tax")
        assert inside.mesh.wait_for(lambda seen: bool(seen.intentions), PATIENCE)
        leaf = inside.mesh.snapshot.leaf
        assert leaf is not None
        context = inside.callers["order"].client_context(leaf.id)
        ends = Ends(context, inside.mesh.server_context()).shake()
        assert "deny_in_handshake" in str(ends.server_error)
        inside.connect("invoice")


def test_an_agent_that_comes_late(caplog: pytest.LogCaptureFixture) -> None:
    """Told once that it is away, once that it answers; in between nothing succeeds."""
    agent = DevAgent().start()
    agent.close()
    with Mesh("tax", agent=agent.url) as mesh:
        until(lambda: len(mesh.status()["troubles"]) >= 3, "the trouble")
        assert not mesh.ready()
        agent.start()
        assert mesh.ready(PATIENCE)
        until(lambda: not mesh.status()["troubles"], "the end of the trouble")
    agent.close()
    warned = [r.getMessage() for r in caplog.records if r.name == "mesh_middleware.watch"]
    assert len([text for text in warned if "no answer from the agent" in text]) == 1
    assert len([text for text in warned if "answers again" in text]) == 1


# -- the process's own -------------------------------------------------------------------------


def test_the_process_has_one_mesh(agent: DevAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment unless a server has set it; the same at every call."""
    for name in list(os.environ):
        if name.startswith(("MESH_", "CONSUL_")):
            monkeypatch.delenv(name)
    set_default_mesh(None)
    with pytest.raises(ConfigError, match="no service name"):
        default_mesh()
    assert running_mesh() is None
    monkeypatch.setenv("MESH_SERVICE", "tax")
    monkeypatch.setenv("MESH_AGENT", agent.url)
    mesh = default_mesh()
    try:
        assert mesh.running and default_mesh() is mesh and running_mesh() is mesh
        mesh.close()
        assert running_mesh() is None
    finally:
        set_default_mesh(None)


FORK = """
import os
from mesh_middleware import Mesh

mesh = Mesh("tax", agent={agent!r}).start()
assert mesh.ready(20)
child = os.fork()
if child == 0:
    # Nobody renews what the parent knew: the child knows nothing, until it starts anew.
    assert not mesh.running and not mesh.ready() and mesh.snapshot.leaf is None
    assert mesh.start().ready(20)
    mesh.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert mesh.running and mesh.ready()
print("well")
"""


@pytest.mark.process
def test_a_fork_forgets(agent: DevAgent) -> None:
    """The watcher's thread is not there in the child: nothing is judged by what it knew."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK.format(agent=agent.url)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=clean_environment(),
    )
    assert (done.stdout.strip(), done.returncode) == ("well", 0), done.stderr


@pytest.mark.process
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_process_that_just_ends_deregisters(agent: DevAgent, host: str) -> None:
    """
    Without ``close`` or ``with``: the interpreter's end is enough, and says nothing.

    Also where the agent's name has to be looked up, in threads that are begun no more.
    """
    url = agent.url.replace("127.0.0.1", host)
    text = (
        f"from mesh_middleware import Mesh; m = Mesh('vat', agent={url!r}, port=4711).start()"
        "; assert m.wait_for(lambda s: m.status()['registered'], 20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=clean_environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "vat" not in str(agent.state.services.services)


# -- secrets -----------------------------------------------------------------------------------


def test_nothing_it_tells_holds_a_secret(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    """Neither ``repr`` nor status, metrics, errors or logs have the key, the token or its like."""
    token, password, kept = "c4n4ry-token", "c4n4ry-password", "c4a4" * 16
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        with Inside(
            token=token, auth=f"user:{password}", keep_file=str(tmp_path / "k"), keep_key=kept
        ) as inside:
            mesh = inside.mesh
            pair = mesh._belief.generation._pair
            told += [
                repr(pair),
                repr(mesh.settings),
                repr(mesh.snapshot),
                repr(mesh.server_context()),
            ]
            for fault in ("forbid", "fail", "mismatch", "truncated"):
                with inside.agent.faults.begin(fault) as held:
                    inside.agent.renew("tax")
                    until(lambda held=held: held.hits >= 2, fault)
                    told += [str(mesh.status()), mesh.metrics(), repr(vars(mesh))]
                    told += [repr(vars(mesh._watcher)), repr(vars(mesh._belief))]
            inside.connect("invoice")
        for wrong in ({"token": token + "\n"}, {"auth": password + "\n"}):
            with pytest.raises(MeshError) as caught:
                Mesh("tax", **wrong)
            told.append(str(caught.value))
    everything = "\n".join([*told, caplog.text, *(repr(vars(r)) for r in caplog.records)])
    for secret in (token, password, kept, "PRIVATE KEY", *secrets_of(pair.key_pem)):
        assert secret not in everything, secret
