"""The outbound door: names, identity before the first byte, errors, denials, rotation."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import httpx
import pytest

from mesh_middleware import Mesh, hookimpl
from mesh_middleware.exceptions import (
    BreakerOpenError,
    ConfigError,
    DeadlineError,
    IntentionDeniedError,
    MeshError,
    NotReadyError,
    PeerMismatchError,
    PeerUnverifiedError,
    ResolveError,
)
from mesh_middleware.httpx import (
    AsyncClient,
    Client,
    MeshConnectError,
    MeshConnectTimeout,
    MeshDeadlineError,
    MeshInfo,
    MeshNotReadyError,
    NoHealthyInstanceError,
    UpstreamBusyError,
    UpstreamDeniedError,
    UpstreamMismatchError,
    UpstreamNameError,
    UpstreamUnverifiedError,
)
from mesh_middleware.resolve import Endpoint, StaticResolver, Upstream
from mesh_middleware.routing.breaking import Breaking
from mesh_middleware.routing.chain import Retries
from mesh_middleware.routing.course import Manners
from mesh_middleware.routing.report import AttemptReport
from mesh_middleware.trace import remember_trace

from .driver import Driver, Session
from .support import (
    PATIENCE,
    Authority,
    StaticMesh,
    StaticSettings,
    Wire,
    answering,
    service_id,
    serving,
)

PROBLEM = json.dumps({"type": "urn:mesh-middleware:denied", "title": "Denied", "status": 403})


@pytest.mark.parametrize(
    "url",
    [
        "https://tax/rates?year=2026",
        "http://tax/rates?year=2026",
        "mesh://tax/rates?year=2026",
        "https://tax:1234/rates?year=2026",
        "https://tax.service.consul/rates?year=2026",
        "http://tax.connect.consul/rates?year=2026",
    ],
)
def test_every_form_of_a_name_reaches_the_upstream(
    authority: Authority, mesh: StaticMesh, driver: Driver, url: str
) -> None:
    """All forms of a name, with any of the three schemes, are one call over mutual TLS."""
    seen: list[bytes] = []

    def script(wire: Wire) -> None:
        seen.append(wire.read_head())
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nrates")

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        response = client.get(url)
    assert response.text == "rates"
    host = httpx.URL(url).netloc
    assert seen[0].startswith(b"GET /rates?year=2026 HTTP/1.1\r\nHost: " + host + b"\r\n")


def test_the_datacenter_of_the_name_is_asked_for(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``tax.service.dc2.consul`` is looked up in dc2."""
    with serving(authority, answering(b"far")) as server, driver.client(mesh) as client:
        mesh.watch_upstream(Upstream("tax", "dc2")).tell(server.endpoint("tax"))
        assert client.get("https://tax.service.dc2.consul/").text == "far"


def test_the_response_tells_who_answered(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``response.extensions["mesh"]`` has the instance and the identity it proved."""
    with serving(authority, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        response = client.get("https://tax/")
        info: MeshInfo = response.extensions["mesh"]
        assert info.instance == server.endpoint("tax")
        assert (info.identity, info.attempts, info.denied) == (service_id("tax").uri, 1, False)
        assert response.http_version == "HTTP/1.1"
        assert response.reason_phrase == "OK"


@pytest.mark.parametrize(
    "uris",
    [
        (service_id("other").uri,),
        (service_id("tax", "dc2").uri,),
        (service_id("tax").uri.replace("svc/tax", "svc/tax2"),),
        (service_id("tax").uri, service_id("other").uri),
    ],
    ids=["service", "datacenter", "prefix", "two names"],
)
def test_no_byte_goes_to_another_identity(
    authority: Authority, mesh: StaticMesh, driver: Driver, uris: tuple[str, ...]
) -> None:
    """An instance with another SPIFFE ID gets nothing, and the error names both."""
    seen = bytearray()

    def script(wire: Wire) -> None:
        seen.extend(wire.read_to_end())

    with serving(authority, script, *uris) as server:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh) as client, pytest.raises(UpstreamMismatchError) as caught:
            client.request("POST", "https://tax/", content=b"secret")
    assert not seen
    assert isinstance(caught.value, httpx.ConnectError)
    assert isinstance(caught.value, PeerMismatchError)
    assert caught.value.upstream == "tax.service"
    assert caught.value.address == f"127.0.0.1:{server.port}"
    assert caught.value.expected == service_id("tax").uri
    assert caught.value.seen == caught.value.actual == ",".join(uris)


def test_no_byte_goes_to_a_foreign_authority(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """The right name under another CA is nobody."""
    seen = bytearray()

    def script(wire: Wire) -> None:
        seen.extend(wire.read_to_end())

    with serving(Authority(), script) as server:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh) as client, pytest.raises(UpstreamUnverifiedError) as caught:
            client.get("https://tax/")
    assert not seen
    assert isinstance(caught.value, httpx.ConnectError)
    assert isinstance(caught.value, PeerUnverifiedError)


def test_the_server_sees_our_leaf(authority: Authority, mesh: StaticMesh, driver: Driver) -> None:
    """The connection is mutual: the upstream reads our SPIFFE ID, and gets a server name."""
    seen: list[Any] = []

    def script(wire: Wire) -> None:
        seen.append(wire.sock.getpeercert()["subjectAltName"])  # type: ignore[attr-defined]
        answering()(wire)

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        assert client.get("https://tax/").status_code == 200
    assert seen == [(("URI", service_id("order").uri),)]


def test_no_instance_is_an_error_of_its_own(mesh: StaticMesh, driver: Driver) -> None:
    """No healthy instance is httpx's ConnectError and ours."""
    mesh.tell("tax")
    with driver.client(mesh) as client, pytest.raises(NoHealthyInstanceError) as caught:
        client.get("https://tax/")
    assert isinstance(caught.value, httpx.ConnectError)
    assert isinstance(caught.value, ResolveError)
    assert "tax" in str(caught.value)


def test_a_mesh_not_joined_is_an_error_of_its_own(mesh: StaticMesh, driver: Driver) -> None:
    """Without leaf and roots the call waits for the connect timeout, then says why."""
    mesh.leave()
    with driver.client(mesh) as client, pytest.raises(MeshNotReadyError) as caught:
        client.get("https://tax/", timeout=httpx.Timeout(5, connect=0.01))
    assert isinstance(caught.value, httpx.ConnectError)
    assert isinstance(caught.value, NotReadyError)


def test_an_upstream_not_told_yet_is_an_error_of_its_own(mesh: StaticMesh, driver: Driver) -> None:
    """Without an answer about the upstream the call waits likewise."""
    with driver.client(mesh) as client, pytest.raises(MeshNotReadyError, match="not said"):
        client.get("https://tax/", timeout=httpx.Timeout(5, connect=0.01))


def test_the_first_call_waits_for_the_mesh(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A call made before the mesh was joined goes through as soon as it is."""
    mesh.leave()
    with serving(authority, answering()) as server, driver.client(mesh) as client:

        def join() -> None:
            mesh.tell("tax", server.endpoint("tax"))
            mesh.join()

        timer = threading.Timer(0.05, join)
        timer.start()
        assert client.get("https://tax/").status_code == 200
        timer.join(PATIENCE)


@pytest.mark.parametrize(
    "url", ["https://example.com/", "http://10.0.0.1/", "http://localhost:5003/", "https://[::1]/"]
)
def test_only_names_in_the_mesh_are_called(mesh: StaticMesh, driver: Driver, url: str) -> None:
    """Without an ordinary transport mounted, other hosts are errors."""
    with driver.client(mesh) as client, pytest.raises(UpstreamNameError) as caught:
        client.get(url)
    assert isinstance(caught.value, httpx.ConnectError)
    assert isinstance(caught.value, ResolveError)


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("near.query.consul", Upstream("near", kind="query")),
        ("near.query.dc2.consul", Upstream("near", "dc2", kind="query")),
        ("tax.service.team.ns.consul", Upstream("tax", namespace="team")),
        ("tax.service.team.ns.eu.ap.dc2.dc.consul", Upstream("tax", "dc2", "team", "eu")),
    ],
)
def test_what_a_name_says_is_asked_for(
    authority: Authority, mesh: StaticMesh, driver: Driver, host: str, asked: Upstream
) -> None:
    """Prepared queries, namespaces and partitions are asked for as the name says."""
    with serving(authority, answering(b"found")) as server, driver.client(mesh) as client:
        mesh.watch_upstream(asked).tell(server.endpoint("tax"))
        assert client.get(f"https://{host}/").text == "found"
    assert mesh.asked == asked


def test_the_domain_is_the_meshs_setting(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """With another domain its names are of the mesh, also for mounted transports."""
    mesh.settings = StaticSettings(domain="corp.example")
    ordinary = driver.mock(lambda request: httpx.Response(200, text="ordinary"))
    with serving(authority, answering(b"mesh")) as server:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh, mounts={"all://": ordinary}) as client:
            assert client.get("http://tax.service.corp.example/").text == "mesh"
            assert client.get("http://tax.service.consul/").text == "ordinary"
        with driver.client(mesh) as client, pytest.raises(UpstreamNameError):
            client.get("https://tax.service.consul/")


@pytest.mark.parametrize("pattern", ["http://", "https://", "all://", "all://*"])
def test_ordinary_transports_never_carry_mesh_names(
    authority: Authority, mesh: StaticMesh, driver: Driver, pattern: str
) -> None:
    """Mounted by scheme or wildcard, a transport serves other hosts; mesh names stay in."""
    scheme = "http" if pattern == "http://" else "https"
    ordinary = driver.mock(lambda request: httpx.Response(200, text="ordinary"))
    with serving(authority, answering(b"mesh")) as server:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh, mounts={pattern: ordinary}) as client:
            assert client.get(f"{scheme}://example.com/").text == "ordinary"
            assert client.get(f"{scheme}://tax/").text == "mesh"
            assert client.get(f"{scheme}://tax.service.consul/").text == "mesh"
            with pytest.raises(UpstreamNameError):
                client.get(f"{scheme}://v1.tax.service.consul/")


def test_a_transport_of_ones_own_serves_the_rest(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``transport=`` carries what is not in the mesh, and nothing of the mesh."""
    ordinary = driver.mock(lambda request: httpx.Response(200, text="ordinary"))
    with serving(authority, answering(b"mesh")) as server:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh, transport=ordinary) as client:
            assert client.get("https://example.com/").text == "ordinary"
            assert client.get("http://tax/").text == "mesh"
            assert client.get("mesh://tax/").text == "mesh"


def test_one_very_host_can_be_mounted(mesh: StaticMesh, driver: Driver) -> None:
    """A double mounted for one very host is what the user meant."""
    double = driver.mock(lambda request: httpx.Response(200, text="double"))
    with driver.client(mesh, mounts={"https://tax": double}) as client:
        assert client.get("https://tax/").text == "double"


def test_the_transport_mounts_in_a_client_of_httpx(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``httpx.Client(mounts={"mesh://": MeshTransport()})``, beside ordinary traffic."""
    ordinary = driver.mock(lambda request: httpx.Response(200, text="ordinary"))
    with serving(authority, answering(b"mesh")) as server:
        mesh.tell("tax", server.endpoint("tax"))
        mounts = {"mesh://": driver.transport(mesh)}
        with driver.plain(transport=ordinary, mounts=mounts) as client:
            assert client.get("mesh://tax/").text == "mesh"
            assert client.get("https://tax/").text == "ordinary"
        other = {"mesh://": driver.transport(mesh)}
        with driver.client(mesh, mounts=other) as client:
            assert client.get("mesh://tax/").text == "mesh"


def test_a_redirect_out_of_the_mesh_fails(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A redirect to a host outside is not followed into the open; one inside is."""
    out = answering(status=b"302 Found", headers=b"Location: http://example.com/\r\n")
    into = answering(status=b"302 Found", headers=b"Location: http://tax/\r\n")
    with serving(authority, out) as leaving, serving(authority, into, name="old") as moved:
        mesh.tell("tax", leaving.endpoint("tax"))
        mesh.tell("old", moved.endpoint("old"))
        with driver.client(mesh, follow_redirects=True) as client:
            for url in ("https://tax/", "https://old/"):
                with pytest.raises(UpstreamNameError, match=r"example\.com"):
                    client.get(url)
            assert (leaving.connections, moved.connections) == (1, 1)


@pytest.mark.parametrize(
    "said", ["/new", "new", "//tax/new", "http://tax/new", "https://tax.service.consul/new"]
)
@pytest.mark.parametrize("scheme", ["mesh", "https"])
def test_a_redirect_inside_the_mesh_stays_there(
    authority: Authority, mesh: StaticMesh, driver: Driver, said: str, scheme: str
) -> None:
    """Where one scheme is mounted, no redirect to a name in the mesh is followed in the open."""
    heads: list[bytes] = []

    def script(wire: Wire) -> None:
        while head := wire.read_head():
            heads.append(head.partition(b"\r\n")[0])
            moved = b"HTTP/1.1 307 Moved\r\nLocation: %b\r\n" % said.encode()
            first = moved if b"/old" in head else b"HTTP/1.1 200 OK\r\n"
            wire.send(first + b"Content-Length: 0\r\n\r\n")

    ordinary = driver.mock(lambda request: httpx.Response(200, text="in the open"))
    mounts = {f"{scheme}://": driver.transport(mesh)}
    with serving(authority, script) as server:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.plain(transport=ordinary, mounts=mounts, follow_redirects=True) as client:
            response = client.get(f"{scheme}://tax/old")
    assert response.text == ""
    assert response.url.scheme == scheme
    assert heads == [b"GET /old HTTP/1.1", b"GET /new HTTP/1.1"]


@pytest.mark.parametrize("said", ["https://example.com/", "http://10.0.0.1/", "ftp://tax/"])
def test_a_redirect_out_of_a_mounted_mesh_is_the_clients_own_business(
    authority: Authority, mesh: StaticMesh, driver: Driver, said: str
) -> None:
    """What is no name in the mesh goes where the client's owner mounted it."""
    out = answering(status=b"302 Found", headers=b"Location: %b\r\n" % said.encode())
    ordinary = driver.mock(lambda request: httpx.Response(200, text="in the open"))
    with serving(authority, out) as server:
        mesh.tell("tax", server.endpoint("tax"))
        mounts = {"mesh://": driver.transport(mesh)}
        with driver.plain(transport=ordinary, mounts=mounts, follow_redirects=True) as client:
            assert str(client.get("mesh://tax/").url) == said


def test_the_environment_reroutes_nothing(
    authority: Authority, mesh: StaticMesh, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxy and certificate variables change nothing."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    with serving(authority, answering(b"mesh")) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        assert client.get("http://tax/").text == "mesh"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "options",
    [{"verify": False}, {"cert": "x"}, {"proxy": "http://127.0.0.1:9"}, {"trust_env": True}],
    ids=str,
)
def test_options_that_would_weaken_are_refused(
    mesh: StaticMesh, kind: type[Any], options: dict[str, Any]
) -> None:
    """What has no place in a mesh client is a ConfigError that says why."""
    with pytest.raises(ConfigError, match="has no place"):
        kind(mesh, **options)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_httpx_options_work(mesh: StaticMesh, kind: type[Any]) -> None:
    """Clients are httpx's own, with its arguments."""
    client = kind(mesh, base_url="https://tax/v1", headers={"x-a": "1"}, timeout=3)
    assert isinstance(client, (httpx.Client, httpx.AsyncClient))
    request = client.build_request("GET", "rates")
    assert str(request.url) == "https://tax/v1/rates"
    assert request.headers["x-a"] == "1"
    assert client.trust_env is False


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (b"Content-Type: application/problem+json\r\n", PROBLEM.encode()),
        (b"Content-Type: application/problem+json; charset=utf-8\r\n", PROBLEM.encode()),
        (b"Content-Type: text/plain\r\n", b"RBAC: access denied"),
    ],
    ids=["ours", "with a charset", "envoy"],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["read", "streamed"])
def test_a_refusal_by_policy_is_told_apart(
    authority: Authority,
    mesh: StaticMesh,
    driver: Driver,
    headers: bytes,
    body: bytes,
    streamed: bool,
) -> None:
    """Our problem type and Envoy's text are a policy's no; the body is still there to read."""
    script = answering(body, b"403 Forbidden", headers)
    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        if streamed:
            response, parts = client.parts("GET", "https://tax/")
            assert b"".join(parts) == body
        else:
            response = client.get("https://tax/")
            assert response.content == body
        assert client.get("https://tax/").status_code == 403
        assert server.connections == 1
    assert response.extensions["mesh"].denied
    with pytest.raises(UpstreamDeniedError, match=r"tax\.service: denied") as caught:
        response.raise_for_status()
    assert isinstance(caught.value, httpx.HTTPStatusError)
    assert isinstance(caught.value, IntentionDeniedError)
    assert caught.value.response is response
    assert caught.value.request is response.request


def test_a_refusal_by_policy_is_never_retried(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Not even where 403 is among the statuses to retry; nor is any instance blamed for it."""
    heads: list[bytes] = []

    def script(wire: Wire) -> None:
        while head := wire.read_head():
            heads.append(head)
            wire.send(b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\n")
            wire.send(b"Content-Length: %d\r\n\r\n%s" % (len(PROBLEM), PROBLEM.encode()))

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        retries = Retries(5, frozenset({"5xx", "reset"}), frozenset({403}))
        course = mesh.watch_upstream("tax").course
        breaking = Breaking(max_failures=1, max_percent=100)
        course.learn_manners(Manners(breaking, retries=retries), 0.0)
        for _ in range(3):
            assert client.get("https://tax/").extensions["mesh"].denied
        (state,) = course.look(time.monotonic()).instances
    assert (len(heads), state.state, state.failures, state.outstanding) == (3, "closed", 0, 0)


def test_an_ejected_instance_is_not_called(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Failures in a row eject; then calls fail at once, by name, and nothing is sent."""
    script = answering(b"", b"500 Oh")
    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        course = mesh.watch_upstream("tax").course
        course.learn_manners(Manners(Breaking(max_failures=2, max_percent=100)), 0.0)
        assert [client.get("https://tax/").status_code for _ in range(2)] == [500, 500]
        assert course.look(time.monotonic()).state == "open"
        with pytest.raises(UpstreamBusyError, match="ejected") as caught:
            client.get("https://tax/")
    assert isinstance(caught.value, httpx.ConnectError)
    assert isinstance(caught.value, BreakerOpenError)
    assert caught.value.upstream == "tax.service"


def test_a_status_to_retry_goes_to_another_instance(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """The answer of the second attempt is the answer; the first one's is not kept."""
    bad, good = answering(b"bad", b"503 No"), answering(b"good")
    with serving(authority, bad) as one, serving(authority, good) as other:
        mesh.tell("tax", one.endpoint("tax"), other.endpoint("tax"))
        retries = Retries(1, frozenset(), frozenset({503}), same=False)
        course = mesh.watch_upstream("tax").course
        course.learn_manners(Manners(Breaking(enforcing=0), retries=retries, budget=1.0), 0.0)
        with driver.client(mesh) as client:
            found = [client.get("https://tax/") for _ in range(10)]
            assert {response.text for response in found} == {"good"}
            assert {response.extensions["mesh"].attempts for response in found} == {1, 2}
            posted = [client.request("POST", "https://tax/").text for _ in range(20)]
            assert set(posted) == {"good", "bad"}


def test_the_time_of_a_call_is_carried_and_kept(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A call's own timeout is told to the upstream, and ends the wait for a silent one."""
    heads: list[bytes] = []

    def script(wire: Wire) -> None:
        heads.append(wire.read_head())
        wire.read_to_end()

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with pytest.raises(httpx.ReadTimeout):
            client.get("https://tax/", extensions={"mesh": {"timeout": 0.2}})
        with pytest.raises(MeshDeadlineError) as caught:
            client.get("https://tax/", extensions={"mesh": {"timeout": 0.0}})
    (head,) = heads
    told = head.lower().partition(b"x-envoy-expected-rq-timeout-ms: ")[2].partition(b"\r\n")[0]
    assert 0 < int(told) <= 200
    assert isinstance(caught.value, httpx.ConnectTimeout)
    assert isinstance(caught.value, DeadlineError)


def test_the_time_of_a_call_holds_while_the_mesh_is_waited_for(
    mesh: StaticMesh, driver: Driver
) -> None:
    """Who gave a call a fraction of a second is not kept for the whole of the connect timeout."""
    mesh.leave()
    with driver.client(mesh, timeout=PATIENCE) as client:
        began = time.monotonic()
        with pytest.raises(MeshNotReadyError):
            client.get("https://tax/", extensions={"mesh": {"timeout": 0.05}})
        assert time.monotonic() - began < PATIENCE / 2


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"retry": 2}, "did you mean 'retries'"),
        ({"retries": 2}, r"retries=2 is no Retries, such as .* of mesh_middleware.routing.chain"),
        ({"retries": Retries(1, frozenset({"5XX"}))}, "no '5XX'; did you mean '5xx'"),
        ({"retries": Retries(1, "reset")}, "on='reset'.: a set is expected"),  # type: ignore[arg-type]
        ({"retries": Retries(1, statuses=frozenset({"503"}))}, "'503' is no number"),  # type: ignore[arg-type]
        ({"retries": Retries(1, methods=frozenset({"post"}))}, "'post' is written 'POST'"),
        ({"timeout": "2s"}, "no number of seconds"),
        ({"timeout": float("nan")}, "no number of seconds"),
        ({"timeout": True}, "no number of seconds"),
        (2.0, "not a table"),
    ],
    ids=str,
)
def test_what_a_call_cannot_ask_for_is_refused(
    mesh: StaticMesh, driver: Driver, wishes: object, said: str
) -> None:
    """A misspelt or unusable wish is an error before anything is sent, not one that is dropped."""
    with driver.client(mesh) as client, pytest.raises(ConfigError, match=said):
        client.get("https://tax/", extensions={"mesh": wishes})


def test_a_time_without_end_is_no_limit(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Infinity is what it says; a key may be a number."""
    with serving(authority, answering(b"mesh")) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        wishes = {"timeout": float("inf"), "key": 7, "source": None}
        assert client.get("https://tax/", extensions={"mesh": wishes}).text == "mesh"


def test_a_client_says_once_when_its_calls_are_repeated(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``retries`` of the client hold for each call that says nothing else."""
    bad = answering(status=b"503 Unavailable")
    often = Retries(2, frozenset({"connect-failure"}), frozenset({503}))
    with serving(authority, bad) as server, driver.client(mesh, retries=often) as client:
        mesh.tell("tax", server.endpoint("tax"))
        assert client.get("https://tax/").extensions["mesh"].attempts == 3
        assert client.request("POST", "https://tax/").extensions["mesh"].attempts == 1
        timed = {"mesh": {"timeout": PATIENCE}}
        assert client.get("https://tax/", extensions=timed).extensions["mesh"].attempts == 3
        never = {"mesh": {"retries": Retries()}}
        assert client.get("https://tax/", extensions=never).extensions["mesh"].attempts == 1


def test_a_number_is_no_retries() -> None:
    """What a client cannot do is said when it is made."""
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError, match="is no Retries"):
            kind(retries=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (b"403 Forbidden", b"Content-Type: application/problem+json\r\n", b'{"type": "x"}'),
        (b"403 Forbidden", b"Content-Type: application/problem+json\r\n", b'["type"]'),
        (b"403 Forbidden", b"Content-Type: application/problem+json\r\n", b"{"),
        (b"403 Forbidden", b"Content-Type: application/problem+json\r\n", b""),
        (b"403 Forbidden", b"Content-Type: application/problem+json\r\n", b"[" * 4096),
        (b"403 Forbidden", b"Content-Type: application/json\r\n", PROBLEM.encode()),
        (b"403 Forbidden", b"Content-Type: text/plain\r\n", b"RBAC: access denied."),
        (b"403 Forbidden", b"Content-Type: text/plain\r\n", b"x" * 5000),
        (b"403 Forbidden", b"", b"no"),
        (b"401 No", b"Content-Type: application/problem+json\r\n", PROBLEM.encode()),
    ],
    ids=range(10),
)
def test_an_applications_own_403_stays_one(
    authority: Authority,
    mesh: StaticMesh,
    driver: Driver,
    status: bytes,
    headers: bytes,
    body: bytes,
) -> None:
    """A refusal by the application is httpx's ordinary HTTPStatusError."""
    script = answering(body, status, headers)
    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        response = client.get("https://tax/")
    assert response.content == body
    assert not response.extensions["mesh"].denied
    with pytest.raises(httpx.HTTPStatusError) as caught:
        response.raise_for_status()
    assert not isinstance(caught.value, MeshError)


def test_a_long_chunked_403_is_not_swallowed(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A body without a length is read for a denial only so far; the rest is streamed."""

    def script(wire: Wire) -> None:
        wire.read_head()
        wire.send(
            b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(8):
            wire.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
        wire.send(b"0\r\n\r\n")

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        response = client.get("https://tax/")
    assert len(response.content) == 8192
    assert not response.extensions["mesh"].denied


def test_an_unreachable_instance_leads_to_another(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """When one instance refuses connections another is tried; the response counts them."""
    with serving(authority, answering(b"other")) as server, driver.client(mesh) as client:
        dead = Endpoint("127.0.0.1", _free_port(), service_id("tax"), weight=128)
        mesh.tell("tax", dead, server.endpoint("tax"))
        responses = [client.request("POST", "https://tax/", content=b"x") for _ in range(8)]
    assert {response.text for response in responses} == {"other"}
    assert max(response.extensions["mesh"].attempts for response in responses) == 2


def test_an_impostor_leads_to_another(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """An instance that is somebody else is passed over like a dead one."""
    with (
        serving(authority, answering(), service_id("other").uri) as impostor,
        serving(authority, answering(b"real")) as server,
        driver.client(mesh) as client,
    ):
        mesh.tell("tax", impostor.endpoint("tax", weight=128), server.endpoint("tax"))
        assert {client.get("https://tax/").text for _ in range(8)} == {"real"}


def test_when_no_instance_answers_the_last_failure_is_told(
    mesh: StaticMesh, driver: Driver
) -> None:
    """All instances dead: a ConnectError that names upstream, address and identity."""
    dead = Endpoint("127.0.0.1", _free_port(), service_id("tax"))
    mesh.tell("tax", dead)
    with driver.client(mesh) as client, pytest.raises(MeshConnectError) as caught:
        client.get("https://tax/")
    assert (caught.value.upstream, caught.value.address) == ("tax.service", dead.address)
    assert caught.value.expected == dead.expected.uri


def test_a_silent_instance_is_a_connect_timeout(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """An instance that takes the connection and says nothing ends in httpx's ConnectTimeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mesh.tell("tax", Endpoint("127.0.0.1", silent.getsockname()[1], service_id("tax")))
        with driver.client(mesh) as client, pytest.raises(MeshConnectTimeout) as caught:
            client.get("https://tax/", timeout=httpx.Timeout(5, connect=0.05))
    assert isinstance(caught.value, httpx.ConnectTimeout)
    assert caught.value.upstream == "tax.service"


def test_calls_share_a_connection(authority: Authority, mesh: StaticMesh, driver: Driver) -> None:
    """One upstream, many calls, one handshake."""
    with serving(authority, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        for _ in range(5):
            assert client.get("https://tax/").status_code == 200
        assert server.connections == 1


def test_a_rotation_opens_new_connections_and_drains_the_old(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """
    After a rotation new calls take connections with the new leaf; a call under way on an old
    connection ends well.
    """
    serials: list[str] = []
    started, rotated = threading.Event(), threading.Event()

    def script(wire: Wire) -> None:
        serials.append(wire.sock.getpeercert()["serialNumber"])  # type: ignore[attr-defined]
        while head := wire.read_head():
            slow = b"GET /slow" in head
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
            started.set()
            if slow:
                assert rotated.wait(PATIENCE)
            wire.send(b"lf")

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        slow: list[str] = []
        thread = threading.Thread(target=lambda: slow.append(client.get("https://tax/slow").text))
        thread.start()
        assert started.wait(PATIENCE)
        mesh.rotate()
        assert client.get("https://tax/").text == "half"
        assert client.get("https://tax/").text == "half"
        rotated.set()
        thread.join(PATIENCE)
        assert slow == ["half"]
        assert client.get("https://tax/").text == "half"
    assert len(serials) == len(set(serials)) == 2


def test_an_idle_connection_of_an_old_generation_is_not_used(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """After a rotation idle connections are closed rather than used again."""
    ended = threading.Event()

    def script(wire: Wire) -> None:
        answering()(wire)
        ended.set()

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        client.get("https://tax/")
        mesh.rotate()
        assert not ended.is_set()
        client.get("https://tax/")
        assert ended.wait(PATIENCE)
        assert server.connections == 2


def test_a_resolver_can_tell_the_instances(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``resolver=`` stands in for the agent; identity and address still travel together."""
    with serving(authority, answering(b"static")) as server:
        resolver = StaticResolver({"tax": [server.endpoint("tax")]})
        with driver.client(mesh, resolver=resolver) as client:
            assert client.get("https://tax/").text == "static"
            with pytest.raises(NoHealthyInstanceError):
                client.get("https://other/")


def test_calls_are_spread_by_weight(authority: Authority, mesh: StaticMesh, driver: Driver) -> None:
    """Both instances are called, the heavier one more."""
    with (
        serving(authority, answering(b"light")) as light,
        serving(authority, answering(b"heavy")) as heavy,
        driver.client(mesh) as client,
    ):
        mesh.tell("tax", light.endpoint("tax", weight=1), heavy.endpoint("tax", weight=3))
        texts = [client.get("https://tax/").text for _ in range(200)]
    # 200 draws at 0.75, deviation 6: outside of these bounds once in a hundred million runs.
    assert 115 < texts.count("heavy") < 185


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def test_each_attempt_is_told(authority: Authority, mesh: StaticMesh, driver: Driver) -> None:
    """A plugin hears where each attempt went and what became of it, the failed one included."""
    told: list[AttemptReport] = []
    mesh.attempt_told = told.append
    nobody = Endpoint("127.0.0.1", _free_port(), service_id("tax"))
    with serving(authority, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", nobody, server.endpoint("tax"))
        for _ in range(30):
            assert client.get("https://tax/").text == "ok"
            if len(told) > 1 and told[-1].number == 2:
                break
    failed, answered = told[-2:]
    assert (failed.kind, failed.endpoint, failed.final) == ("connect_failure", nobody, False)
    assert failed.error == "MeshConnectError"
    assert (answered.kind, answered.status, answered.final) == ("answer", 200, True)
    assert answered.endpoint == server.endpoint("tax")
    assert (answered.upstream, answered.method, answered.error) == ("tax.service", "GET", "")
    assert 0 < answered.seconds < PATIENCE


PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("came", "sent", "seen"),
    [
        ([(b"traceparent", PARENT)], {}, [b"traceparent: " + PARENT]),
        (
            [(b"traceparent", PARENT), (b"tracestate", b"a=1")],
            {},
            [b"traceparent: " + PARENT, b"tracestate: a=1"],
        ),
        ([(b"traceparent", PARENT)], {"traceparent": "00-own"}, [b"traceparent: 00-own"]),
        ([(b"traceparent", PARENT)] * 2, {}, []),
        ([(b"tracestate", b"a=1")], {}, []),
        ([(b"traceparent", b"x" * 2000)], {}, []),
        ([(b"x-other", b"1")], {}, []),
    ],
    ids=["parent", "both", "the caller's own", "twice", "state alone", "long", "none"],
)
@pytest.mark.parametrize("http2", [False, True], ids=["ours", "stock"])
def test_the_trace_of_the_request_served_is_passed_on(
    authority: Authority,
    mesh: StaticMesh,
    http2: bool,
    came: list[tuple[bytes, bytes]],
    sent: dict[str, str],
    seen: list[bytes],
) -> None:
    """What a door has remembered goes out with calls, unless the caller speaks for itself."""
    heads: list[bytes] = []

    def script(wire: Wire) -> None:
        heads.append(wire.read_head())
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def call() -> None:
        remember_trace(came)
        with Client(mesh, http2=http2) as client:
            client.get("https://tax/", headers=sent)

    with serving(authority, script) as server:
        mesh.tell("tax", server.endpoint("tax"))
        copy_context().run(call)
    lines = heads[0].split(b"\r\n")
    assert [line for line in lines if line.lower().startswith(b"trace")] == seen


@pytest.mark.parametrize(
    ("base", "url", "params"),
    [
        ("", "https://tax/rates?y=1#top", None),
        ("https://tax/v1", "/rates", None),
        ("https://tax/v1/", "rates?y=1", None),
        ("https://tax/v1", "rates?y=1", {"z": "2"}),
        ("https://tax/v1", "https://other/a b/%2f/ä", None),
        ("https://tax", "", None),
        ("", httpx.URL("mesh://tax/x"), {"a": ["1", "2"]}),
        ("https://tax", "/long" + "x" * 1000, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_urls_are_read_as_httpx_reads_them(
    mesh: StaticMesh, base: str, url: httpx.URL | str, params: Any
) -> None:
    """What is kept of a URL is what httpx made of it, with every base URL and parameter."""
    with httpx.Client(base_url=base) as stock, Client(mesh, base_url=base) as ours:
        for both in ({}, {"params": params}, {}, {"params": {"other": "1"}}):
            wanted = stock.build_request("GET", url, **both).url
            assert ours.build_request("GET", url, **both).url == wanted
        for client in (stock, ours):
            client.params = httpx.QueryParams({"always": "1"})
        assert ours.build_request("GET", url).url == stock.build_request("GET", url).url
        for client in (stock, ours):
            client.params, client.base_url = httpx.QueryParams(), httpx.URL("https://elsewhere/x")
        assert ours.build_request("GET", url).url == stock.build_request("GET", url).url


def _look(request: httpx.Request) -> tuple[Any, ...]:
    said = (request.method, request.url, request.headers.raw, request.content)
    return (*said, request.extensions, list(request.stream), type(request.stream))


def test_requests_are_built_as_httpx_builds_them(mesh: StaticMesh) -> None:
    """Whatever is said, changed in the client, or done to a request before, each is httpx's."""
    said: list[dict[str, Any]] = [
        {},
        {"timeout": None},
        {"timeout": 3},
        {"params": {}},
        {"params": {"a": "1"}},
        {"headers": {"X-One": "1", "Accept": "text/plain"}},
        {"cookies": {"a": "b"}},
        {"content": b"x"},
        {"json": {"a": 1}},
        {"extensions": {"mesh": {"key": "k"}}},
        {"extensions": {"timeout": {"read": 1}}},
    ]

    def change(client: httpx.Client, number: int) -> None:
        if number == 1:
            client.headers["Authorization"] = "Bearer 1"
        elif number == 2:
            client.timeout = httpx.Timeout(7)
        elif number == 3:
            client.cookies.set("c", "d")
        elif number == 4:
            client.cookies.clear()
            del client.headers["Authorization"]
        elif number == 5:
            client.params = httpx.QueryParams({"always": "1"})
        elif number == 6:
            client.params, client.base_url = httpx.QueryParams(), httpx.URL("https://other/x")
        elif number == 7:
            client.headers = httpx.Headers({"accept-encoding": "identity"})

    with (
        httpx.Client(base_url="https://tax/v1") as stock,
        Client(mesh, base_url="https://tax/v1") as ours,
    ):
        for number in range(8):
            for client in (stock, ours):
                change(client, number)
            stock.headers["User-Agent"] = ours.headers["User-Agent"] = "test"
            for method in ("GET", "get", "POST", "DELETE"):
                for url in ("rates?x=1#y", "https://u:p@tax/rates"):
                    for options in (option for one in said for option in (one, {})):
                        wanted = stock.build_request(method, url, **options)
                        found = ours.build_request(method, url, **options)
                        assert _look(found) == _look(wanted), (number, method, url, options)
                        found.headers["x-mine"] = found.extensions["mine"] = "only here"


def test_heads_of_like_requests_differ_where_they_must(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Of two requests that are alike but for a header, a host or a method, each says its own."""
    seen: list[bytes] = []

    def script(wire: Wire) -> None:
        while head := wire.read_request()[0]:
            seen.append(head)
            wire.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    calls: list[tuple[str, str, dict[str, str]]] = [
        ("GET", "https://tax/", {}),
        ("GET", "https://tax/", {"Authorization": "Bearer 1"}),
        ("GET", "https://tax/", {"Authorization": "Bearer 2"}),
        ("GET", "https://tax/", {"Host": "other"}),
        ("GET", "https://tax/", {"Accept": "text/plain"}),
        ("GET", "https://tax:99/", {}),
        ("DELETE", "https://tax/", {}),
        ("GET", "https://tax/?x", {}),
    ]
    with serving(authority, script) as server:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh) as client:
            for _ in range(3):
                for method, url, headers in calls:
                    client.request(method, url, headers=headers)
    assert seen[8:16] == seen[16:] == seen[:8]
    assert len(set(seen)) == len(calls)
    assert not any(b"Bearer" in head for head in _kept_heads(client))


def _kept_heads(client: Session) -> list[bytes]:
    return [
        head
        for target in client.client._ours._targets._found.values()
        for head in target.heads.values()
    ]


def test_what_is_kept_of_urls_is_bounded(mesh: StaticMesh) -> None:
    """A URL of its own for every call, and long ones, do not pile up."""
    with Client(mesh) as client:
        for number in range(1000):
            client.build_request("GET", f"https://tax/{number}")
            client.build_request("GET", f"https://tax/{number}" + "x" * 300)
        kept = client._built._kept
        assert 0 < len(kept.urls) <= 256
        assert 0 < len(kept.requests) <= 256


def test_retry_after_is_waited_for_when_it_is_short(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A route that repeats 503 waits as long as the answer asks, within the call's time; one that
    asks for too much, or for longer than the call may take, is the answer."""
    said = [b"1"]

    def script(wire: Wire) -> None:
        while wire.read_head():
            arrived.append(time.monotonic())
            if len(arrived) == 1:
                head = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nRetry-After: %b\r\n\r\n"
                wire.send(head % said[0])
            else:
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    arrived: list[float] = []
    retries = Retries(1, frozenset(), frozenset({503}))
    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        course = mesh.watch_upstream("tax").course
        course.learn_manners(Manners(Breaking(enforcing=0), retries=retries, budget=1.0), 0.0)
        assert client.get("https://tax/").status_code == 200
        assert 0.9 < arrived[1] - arrived[0] < PATIENCE
        arrived.clear()
        limited = {"mesh": {"timeout": 0.5}}
        assert client.get("https://tax/", extensions=limited).status_code == 503
        for said[0], status in (
            (b"11", 503),
            (b"Fri, 01 Jan 2100 00:00:00 GMT", 503),
            (b"0", 200),
            (b"soon", 200),
        ):
            arrived.clear()
            assert client.get("https://tax/").status_code == status


def test_an_instance_that_is_gone_answers_what_it_was_asked(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """It drains: a call under way ends well on its connection, new ones go elsewhere, and then
    the connection is closed."""
    arrived, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def leaving(wire: Wire) -> None:
        wire.read_head()
        arrived.set()
        assert go_on.wait(PATIENCE)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold")
        assert wire.read_to_end() == b""
        ended.set()

    with (
        serving(authority, leaving) as old,
        serving(authority, answering(b"new")) as new,
        driver.client(mesh) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        mesh.tell("tax", old.endpoint("tax"))
        call = threads.submit(client.get, "https://tax/")
        assert arrived.wait(PATIENCE)
        mesh.tell("tax", new.endpoint("tax"))
        assert {client.get("https://tax/").text for _ in range(5)} == {"new"}
        go_on.set()
        assert call.result(PATIENCE).text == "old"
        if driver.kind != "trio":  # whose connections are httpx's, which looks at them later
            client.get("https://tax/")
            assert ended.wait(PATIENCE)


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h2",)], ids=str)
def test_the_protocol_is_what_both_ends_speak(
    authority: Authority, mesh: StaticMesh, driver: Driver, http2: bool, alpn: tuple[str, ...]
) -> None:
    """A peer without ALPN, or without HTTP/2, is spoken to in HTTP/1.1, whatever was offered;
    HTTP/2 begins only where the peer chose it."""
    seen: list[bytes] = []

    def script(wire: Wire) -> None:
        seen.append(wire.read_exactly(14))
        if seen[-1].startswith(b"GET"):
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            wire.read_to_end()

    with serving(authority, script, alpn=alpn) as server, driver.client(mesh, http2=http2) as it:
        mesh.tell("tax", server.endpoint("tax"))
        if http2 and alpn == ("h2",):
            with pytest.raises(httpx.TransportError):
                it.get("https://tax/")
            assert seen == [b"PRI * HTTP/2.0"]
        else:
            assert it.get("https://tax/").text == "ok"
            assert seen == [b"GET / HTTP/1.1"]


def test_a_plugin_hears_of_attempts(authority: Authority) -> None:
    """`mesh_attempt` of a real plugin of a real mesh is what calls tell."""
    told: list[AttemptReport] = []

    class Plugin:
        @hookimpl
        def mesh_attempt(self, attempt: AttemptReport) -> None:
            told.append(attempt)
            raise RuntimeError("a plugin's failure is its own")

    plain, watching = Mesh("order", plugins=()), Mesh("order", plugins=(Plugin(),))
    assert plain.attempt_told is None
    hears = watching.attempt_told
    assert hears is not None
    report = AttemptReport("tax", "GET", Endpoint("127.0.0.1", 1, service_id("tax")), 1, "reset")
    hears(report)
    assert told == [report]
