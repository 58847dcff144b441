"""Which upstreams are watched, and until when: a moment is an argument, so time moves as we say."""

from __future__ import annotations

import threading
import time

import pytest

from mesh_middleware import Mesh, watched
from mesh_middleware.dev import DevAgent
from mesh_middleware.exceptions import AgentUnavailableError, NotReadyError, ResolveError
from mesh_middleware.identity import ServiceId
from mesh_middleware.resolve import Endpoint, Upstream
from mesh_middleware.routing.calls import Call, Outcome
from mesh_middleware.upstreams import UpstreamWatch
from mesh_middleware.watched import IDLE_FOR, UNKNOWN_FOR, Watched

from .support.servers import until

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
TAX = Endpoint("127.0.0.1", 5003, ServiceId(DOMAIN, "default", "dc1", "tax"))
CALL = Call("GET", b"/")


class Table:
    """The table under test, and what it has said."""

    def __init__(self) -> None:
        self.followed: list[UpstreamWatch] = []
        self.left: list[UpstreamWatch] = []
        self.watched = Watched(self.followed.append, self.left.append)

    def known(self, name: str, now: float) -> UpstreamWatch:
        """Watch an upstream that has an instance."""
        watch = self.watched.find(name, now)
        watch.give((TAX,), "")
        return watch


@pytest.fixture
def table() -> Table:
    """An empty one."""
    return Table()


def test_one_name_is_one_watch(table: Table) -> None:
    """However it is said: as text or value, ``connect`` or ``service``."""
    first = table.watched.find("tax", 0.0)
    assert table.watched.find(Upstream("tax", kind="connect"), 1.0) is first
    assert table.watched.find(Upstream("tax", kind="query"), 1.0) is not first
    assert table.followed[0] is first and len(table.followed) == 2


def test_an_upstream_that_nobody_calls_is_let_go(table: Table) -> None:
    """After `IDLE_FOR` and not before; whoever asks again gets a new watch."""
    watch = table.known("tax", 1000.0)
    table.watched.sweep(1000.0 + IDLE_FOR - 1)
    assert not watch.rests and watch.endpoints
    table.watched.sweep(1000.0 + IDLE_FOR)
    assert watch.rests and watch.endpoints is None and table.left == [watch]
    assert table.watched.find("tax", 1000.0 + IDLE_FOR) is not watch


def test_calls_keep_it(table: Table) -> None:
    """The last that began counts, and one that is under way for however long."""
    watch = table.known("tax", 0.0)
    trip = watch.course.begin(CALL, 1000.0, 0.5)
    trip.next(1000.0, 0.5)
    table.watched.sweep(1e6)
    assert not watch.rests
    trip.heard(Outcome("answer", 200), 1e6, 0.5)
    trip.close(1e6)
    again = watch.course.begin(CALL, 1e6, 0.5)
    again.next(1e6, 0.5)
    again.heard(Outcome("given_up"), 1e6, 0.5)
    table.watched.sweep(1e6 + IDLE_FOR - 2)
    assert not watch.rests
    table.watched.sweep(1e6 + IDLE_FOR)
    assert watch.rests


def test_who_asks_for_it_keeps_it(table: Table) -> None:
    """``mesh.upstream("tax")`` is a use as well."""
    watch = table.known("tax", 0.0)
    table.watched.find("tax", IDLE_FOR - 1)
    table.watched.sweep(IDLE_FOR)
    assert not watch.rests


def test_a_name_without_instances_is_let_go_sooner(table: Table) -> None:
    """Told that there are none, or not told yet; but not while somebody waits for the answer."""
    nobody, untold = table.watched.find("nobody", 0.0), table.watched.find("untold", 0.0)
    nobody.give((), "none")
    waits = threading.Thread(target=untold.wait, args=(30,))
    waits.start()
    until(untold.is_needed, "somebody who waits")
    table.watched.sweep(UNKNOWN_FOR - 1)
    assert table.left == []
    table.watched.sweep(UNKNOWN_FOR)
    assert table.left == [nobody]
    untold.give((TAX,), "")
    waits.join(30)


def test_what_is_known_stays_while_the_agent_is_away(table: Table) -> None:
    """Who let it go then could not learn it again."""
    watch = table.known("tax", 0.0)
    watch.fail(AgentUnavailableError("gone"))
    table.watched.sweep(1e6)
    assert not watch.rests
    watch.take([], DOMAIN)
    watch.give((TAX,), "")
    table.watched.sweep(1e6)
    assert watch.rests


def test_names_are_bounded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one without instances that was asked for longest ago makes room; known ones never do."""
    monkeypatch.setattr(watched, "MOST", 3)
    tax = table.known("tax", 0.0)
    first, second = table.watched.find("a", 1.0), table.watched.find("b", 2.0)
    table.watched.find("a", 3.0)
    table.watched.find("c", 4.0)
    assert (second.rests, first.rests, tax.rests, table.watched.count) == (True, False, False, 3)
    for watch in table.followed:
        watch.give((TAX,), "")
    with pytest.raises(ResolveError, match=r"^d\.service: 3 upstreams are watched already"):
        table.watched.find("d", 5.0)
    assert table.watched.count == 3


def test_a_watch_at_rest_learns_nothing_more(table: Table) -> None:
    """An answer on its way when it was let go must not make it look watched."""
    watch = table.known("tax", 0.0)
    table.watched.sweep(IDLE_FOR)
    watch.give((TAX,), "")
    watch.take_chain(None)
    assert watch.endpoints is None


def test_what_was_ended_begins_nothing(table: Table) -> None:
    """A call in the moment of closing is told so at once."""
    watch = table.known("tax", 0.0)
    table.watched.end("the mesh was closed")
    assert (watch.endpoints, watch.why) == (None, "the mesh was closed")
    for name in ("tax", "levy"):
        with pytest.raises(NotReadyError, match="the mesh was closed"):
            table.watched.find(name, 1.0)


# -- with an agent ---------------------------------------------------------------------------------


def test_watches_end_with_their_tasks_and_begin_anew() -> None:
    """Blocking queries, chains and the places they lead to: nothing is left; then all over."""
    with DevAgent() as agent, Mesh("order", agent=agent.url, plugins=(), register=False) as mesh:
        assert mesh.ready(30)
        _end_and_begin(agent, mesh)


def _end_and_begin(agent: DevAgent, mesh: Mesh) -> None:
    redirect = {"Kind": "service-resolver", "Name": "tax", "Redirect": {"Service": "levy"}}
    agent.put_entry(redirect)
    native = {"Address": "127.0.0.1", "Port": 5004, "Connect": {"Native": True}}
    agent.register({"Name": "levy", "ID": "levy-1", **native})
    first = mesh.upstream("tax")
    assert [one.expected.name for one in first.wait(30)] == ["levy"]
    many = [mesh.upstream(f"nobody-{number}") for number in range(20)]
    names = {"tax", "levy", *(f"nobody-{number}" for number in range(20))}
    until(lambda: set(watches(mesh)) == names, "a watch for each name and place")
    assert mesh._watched is not None
    mesh._watched.sweep(time.monotonic() + IDLE_FOR + 1)
    assert all(watch.rests for watch in (first, *many))
    until(lambda: watches(mesh) == [], "the end of their tasks")
    assert mesh.status()["troubles"] == {}
    again = mesh.upstream("tax")
    assert again is not first and len(again.wait(30)) == 1


def watches(mesh: Mesh) -> list[str]:
    """The upstreams about which something is asked of the agent."""
    assert mesh._watcher is not None
    outbound = mesh._watcher._outbound
    return [str(upstream) for upstream in outbound._tasks] if outbound else []
