"""
Calling, and being called by, what others put in front of a service.

One service name has three kinds of instance at once: native, behind Consul's built-in proxy, behind
Envoy. The client does not know which is which, and need not.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh_middleware import AsyncClient, Client, Mesh
from mesh_middleware.exceptions import IntentionDeniedError

from ..support.servers import until
from .upstreams import Shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Everything there is to call, once for all tests here."""
    with ExitStack() as stack:
        shop = Shop(tmp_path_factory.mktemp("shop"), stack)
        shop.wait_registered("tax", 3)
        yield shop


@pytest.fixture(scope="module")
def mesh(shop: Shop) -> Iterator[Mesh]:
    """The caller, known as order."""
    with Mesh("order", agent=shop.agent.url, register=False) as mesh:
        assert mesh.wait_for(lambda snapshot: snapshot.joined, 20)
        yield mesh


def _call(mesh: Mesh, url: str, count: int, *, http2: bool, concurrent: bool) -> list[Any]:
    if not concurrent:
        with Client(mesh=mesh, http2=http2, timeout=20) as client:
            return [client.get(url) for _ in range(count)]

    async def run() -> list[httpx.Response]:
        async with AsyncClient(mesh=mesh, http2=http2, timeout=20) as client:
            return await asyncio.gather(*(client.get(url) for _ in range(count)))

    return asyncio.run(run())


@pytest.mark.parametrize("concurrent", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
def test_one_name_has_three_kinds_of_instance(
    shop: Shop, mesh: Mesh, http2: bool, concurrent: bool
) -> None:
    """Native, behind Consul's proxy and behind Envoy: all answer, each as itself."""
    found = _call(mesh, "https://tax/who", 60, http2=http2, concurrent=concurrent)
    assert {response.status_code for response in found} == {200}
    kinds = Counter(response.json()["kind"] for response in found)
    assert kinds.keys() == {"native", "proxy", "envoy"}
    for response in found:
        info = response.extensions["mesh"]
        kind = response.json()["kind"]
        assert info.instance.kind == ("native" if kind == "native" else "sidecar")
        assert info.identity.endswith("/ns/default/dc/dc1/svc/tax")
        # Consul's proxy passes bytes on, and selects h2 though what it hides speaks HTTP/1.1: a
        # sidecar gets HTTP/2 only where Consul was told that the service speaks it.
        spoken = "HTTP/2" if http2 and kind == "native" else "HTTP/1.1"
        assert response.http_version == spoken
    natives = [r.json() for r in found if r.json()["kind"] == "native"]
    assert {answer["source"] for answer in natives} == {"order"}


@pytest.mark.parametrize("concurrent", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
def test_a_peer_that_stopped_at_tls_1_2_is_called(
    shop: Shop, mesh: Mesh, http2: bool, concurrent: bool
) -> None:
    """TLS 1.2 only, and no ALPN: an old sidecar."""

    def check(response: httpx.Response) -> None:
        assert (response.json(), response.http_version) == ({"kind": "envoy"}, "HTTP/1.1")
        tls = response.extensions["network_stream"].get_extra_info("ssl_object")
        assert (tls.version(), tls.selected_alpn_protocol()) == ("TLSv1.2", None)

    async def run() -> None:
        async with AsyncClient(mesh=mesh, http2=http2, timeout=20) as client:
            check(await client.get("https://old/who"))

    if concurrent:
        asyncio.run(run())
    else:
        with Client(mesh=mesh, http2=http2, timeout=20) as client:
            check(client.get("https://old/who"))


@pytest.mark.parametrize("concurrent", [False, True], ids=["sync", "async"])
def test_a_sidecar_speaks_http2_where_consul_was_told_so(
    shop: Shop, mesh: Mesh, concurrent: bool
) -> None:
    """With ``protocol = "http2"`` in its chain Envoy is offered it, and selects it."""
    for entry in (
        {"Kind": "service-defaults", "Name": "modern", "Protocol": "http2"},
        {"Kind": "service-resolver", "Name": "modern", "ConnectTimeout": "3s"},
    ):
        shop.agent.ask("PUT", "/v1/config", entry)
    watched = mesh.upstream("modern")
    until(lambda: watched.course.chain.protocol == "http2", "the protocol of modern")
    (response,) = _call(mesh, "https://modern/who", 1, http2=True, concurrent=concurrent)
    assert (response.json(), response.http_version) == ({"kind": "envoy"}, "HTTP/2")


@pytest.mark.parametrize("concurrent", [False, True], ids=["sync", "async"])
def test_a_refusal_by_envoy_is_a_refusal_by_policy(
    shop: Shop, mesh: Mesh, concurrent: bool
) -> None:
    """Envoy's RBAC filter says no as an intention does, and the client can tell."""
    (response,) = _call(mesh, "https://strict/who", 1, http2=False, concurrent=concurrent)
    assert (response.status_code, response.extensions["mesh"].denied) == (403, True)
    with pytest.raises(IntentionDeniedError):
        response.raise_for_status()


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_envoy_calls_us_as_a_sidecar_does(shop: Shop, version: str) -> None:
    """A caller's Envoy, which expects our exact SPIFFE ID, reaches the native instance."""
    url = f"http://127.0.0.1:{shop.outbound[version]}/who"
    with httpx.Client(trust_env=False) as client:
        answers = [client.get(url).json() for _ in range(5)]
    assert answers == [{"kind": "native", "source": "order", "version": version}] * 5


def test_an_instance_that_is_gone_loses_no_call(
    shop: Shop, mesh: Mesh, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A registered instance where nobody listens costs another dial, and no answer."""
    forget: Callable[[], Any] = lambda: shop.agent.ask(  # noqa: E731
        "PUT", "/v1/agent/service/deregister/tax-nobody"
    )
    request.addfinalizer(forget)
    shop.agent.sidecar("tax", "nobody", 1)
    shop.wait_registered("tax", 4)
    watched = mesh.upstream("tax.service.consul")
    assert mesh.wait_for(lambda _: True, 0)
    found = _call(mesh, "https://tax/who", 30, http2=False, concurrent=True)
    assert {response.status_code for response in found} == {200}
    assert {one.endpoint.port for one in watched.state.instances} >= {shop.native}


def test_a_prepared_query_finds_the_instances(shop: Shop, mesh: Mesh) -> None:
    """``near.query.consul`` is answered by whom the query finds, and their identity is proved."""
    query = {"Name": "near", "Service": {"Service": "tax", "OnlyPassing": True, "Connect": True}}
    shop.agent.ask("POST", "/v1/query", query)
    found = _call(mesh, "https://near.query.consul/who", 30, http2=False, concurrent=True)
    assert {r.json()["kind"] for r in found} == {"native", "proxy", "envoy"}
    assert {r.extensions["mesh"].instance.expected.name for r in found} == {"tax"}
