"""What a client keeps of upstreams that nobody calls any more."""

from __future__ import annotations

import threading

import pytest

from mesh_middleware.httpx import NoHealthyInstanceError
from mesh_middleware.httpx.upstreams import LEAST_KEPT
from mesh_middleware.resolve import StaticResolver

from .driver import Driver
from .support import PATIENCE, Authority, StaticMesh, Wire, answering, serving


def test_a_call_that_begins_as_its_upstream_is_let_go_is_carried(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """What was known a moment ago is good enough for it."""
    with serving(authority, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        watch = mesh.watch_upstream("tax")
        watch.endpoints, watch.rests = None, True
        assert client.get("https://tax/").text == "ok"


def test_connections_to_an_upstream_at_rest_are_closed(
    authority: Authority, mesh: StaticMesh
) -> None:
    """With the next upstream that is called for the first time."""
    ended = threading.Event()

    def script(wire: Wire) -> None:
        answering()(wire)
        ended.set()

    for kind in ("sync", "asyncio"):
        ended.clear()
        with (
            Driver(kind).running() as driver,
            serving(authority, script) as server,
            serving(authority, answering(), name="levy") as other,
            driver.client(mesh) as client,
        ):
            mesh.tell("tax", server.endpoint("tax"))
            mesh.tell("levy", other.endpoint("levy"))
            assert client.get("https://tax/").text == "ok"
            mesh.watch_upstream("tax").rests = True
            assert not ended.is_set()
            assert client.get("https://levy/").text == "ok"
            assert ended.wait(PATIENCE)
            mesh.watch_upstream("tax").rests = False


def test_hosts_that_are_nobodys_are_forgotten(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Names made of what users type do not pile up; those that are somebody's stay."""
    with serving(authority, answering()) as server:
        resolver = StaticResolver({"tax": [server.endpoint("tax")]})
        with driver.client(mesh, resolver=resolver) as client:
            assert client.get("https://tax/").text == "ok"
            kept = client.client._ours._targets._found
            known = kept["tax"]
            for number in range(LEAST_KEPT + 50):
                with pytest.raises(NoHealthyInstanceError):
                    client.get(f"https://nobody-{number}/")
            assert len(kept) <= LEAST_KEPT
            assert kept["tax"] is known
