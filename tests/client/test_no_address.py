"""Instances that were registered with an address that is none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh_middleware.httpx import MeshConnectError
from mesh_middleware.raw import open_socket, open_stream
from mesh_middleware.resolve import Endpoint, Upstream
from mesh_middleware.upstreams import UpstreamWatch

from .driver import Driver
from .support import PATIENCE, Authority, StaticMesh, answering, service_id, serving

NO_ADDRESSES = ("tax..internal", "a" * 64 + ".internal", "tax\0internal")
MANY = 8
"""Calls; the dice of half of them, at least, fall on the instance that has no address."""


@pytest.mark.parametrize("host", NO_ADDRESSES, ids=["empty label", "long label", "NUL"])
@pytest.mark.parametrize("options", [{}, {"http2": True}], ids=["1", "2"])
def test_an_instance_whose_address_is_none_cannot_be_reached(
    mesh: StaticMesh, driver: Driver, host: str, options: dict[str, Any]
) -> None:
    """An error of connecting, as for any other that nobody listens at; nothing is left of it."""
    mesh.tell("tax", Endpoint(host, 443, service_id("tax")))
    with driver.client(mesh, **options) as client:
        with pytest.raises(MeshConnectError) as caught:
            client.get("https://tax/")
        assert caught.value.expected == service_id("tax").uri
        carrier = client.client._ours._carrier
        gates = getattr(carrier, "_gates", {})
        assert [gate._open for gate in gates.values()] == [0] * len(gates)
    assert mesh.watch_upstream("tax").course.look(0.0).outstanding == 0


def test_another_instance_answers_instead(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Nothing was sent: any call may go to the next one, whatever its method."""
    with serving(authority, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", Endpoint(NO_ADDRESSES[0], 443, service_id("tax")), server.endpoint("tax"))
        for _ in range(MANY):
            assert client.request("POST", "https://tax/").text == "ok"


def test_raw_connections_go_to_another_instance_too(authority: Authority, mesh: StaticMesh) -> None:
    """And say so by an error of the operating system's kind where there is no other."""

    def upstream(*more: Endpoint) -> UpstreamWatch:
        watch = UpstreamWatch(Upstream("tax"))
        nowhere = Endpoint(NO_ADDRESSES[0], 443, service_id("tax"))
        watch.give((nowhere, *more), "")
        return watch

    with pytest.raises(OSError, match="label empty"):
        open_socket(upstream(), mesh.client_context, PATIENCE)
    with pytest.raises(OSError, match="label empty"):
        asyncio.run(open_stream(upstream(), mesh.client_context, PATIENCE))
    with serving(authority, answering()) as server:
        both = upstream(server.endpoint("tax"))
        for _ in range(MANY):
            open_socket(both, mesh.client_context, PATIENCE).close()
    assert both.course.look(0.0).outstanding == 0
