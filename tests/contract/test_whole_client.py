"""
The whole client, on both agents: what `Mesh` makes of their answers from its start to its end.

Two meshes, ``tax`` and ``invoice``, shake hands in memory: what one shows the other believes, and
what the agent says of the two is the verdict.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest

from mesh_middleware import Mesh, Peer
from mesh_middleware.dev import DevAgent, Token, ca, management_token
from mesh_middleware.exceptions import NotReadyError, ResolveError
from mesh_middleware.intentions import HttpFacts, Reason

from ..support.consul import RealConsul
from ..support.handshakes import Ends
from ..support.servers import until
from .target import PATIENCE, Target

CALL = HttpFacts(b"GET", b"/rates", [(b"host", b"tax")])
ROTATION = 45.0
"""Seconds for a new leaf after a new root: a real Consul spreads them over 30."""


@pytest.fixture
def join(agent: Target) -> Iterator[Any]:
    """Start a mesh on the agent in turn, and close it after the test."""
    with ExitStack() as stack:

        def join(name: str, **options: Any) -> Mesh:
            return stack.enter_context(joined(agent, name, **options))

        yield join


def joined(agent: Target, name: str, **options: Any) -> Mesh:
    """A mesh that is ready."""
    mesh = Mesh(name, agent=agent.url, plugins=(), **options).start()
    assert mesh.ready(PATIENCE), mesh.status()
    return mesh


def meet(source: Mesh, destination: Mesh) -> Peer:
    """Let *source* call: both ends verify each other; returns whom the destination saw."""
    leaf = destination.snapshot.leaf
    assert leaf is not None
    ends = Ends(source.client_context(leaf.id), destination.server_context()).shake()
    assert ends.well, (ends.client_error, ends.server_error)
    assert ends.say(b"question") == b"question"
    assert ends.answer(b"answer") == b"answer"
    peer: Peer = ends.server.mesh_peer  # type: ignore[attr-defined]
    return peer


def instances(agent: Target, name: str) -> list[dict[str, Any]]:
    """The instances that callers would find."""
    found: list[dict[str, Any]] = agent.get(f"/v1/health/connect/{name}?passing=1").json()
    return found


def test_start_ready_snapshot_and_status(agent: Target, join: Any) -> None:
    """What the agent says of roots and leaf is what is believed, and told."""
    name = agent.name("tax")
    mesh = join(name)
    told = agent.get("/v1/agent/connect/ca/roots").json()
    snapshot, status = mesh.snapshot, mesh.status()
    assert snapshot.leaf.id.uri == f"spiffe://{told['TrustDomain']}/ns/default/dc/dc1/svc/{name}"
    assert snapshot.roots.trust_domain == told["TrustDomain"]
    assert len(snapshot.roots.certificates) == len(told["Roots"])
    assert len(snapshot.intentions) == len(
        agent.get(f"/v1/connect/intentions/match?by=destination&name={name}").json().get(name) or ()
    )
    assert snapshot.default_allow is True
    assert status["ready"] and status["troubles"] == {} and status["notes"] == []
    assert status["default_policy"] == "allow"
    assert status["spiffe_id"] == snapshot.leaf.id.uri
    assert abs(status["clock_skew_seconds"]) < 5
    assert 60 < status["outage_budget_seconds"] < 73 * 3600


def test_two_services_meet(agent: Target, join: Any) -> None:
    """Mutual TLS with the agent's certificates alone; each sees the other's SPIFFE ID."""
    invoice, tax = join(agent.name("invoice")), join(agent.name("tax"))
    peer = meet(invoice, tax)
    assert peer.id == invoice.snapshot.leaf.id
    assert peer.serial_number == invoice.snapshot.leaf.serial_number
    assert tax.decide(peer, CALL).allowed


def test_another_service_is_not_taken_for_the_expected_one(agent: Target, join: Any) -> None:
    """Both have certificates of one CA: the client still wants the one name."""
    invoice, tax, vat = (join(agent.name(each)) for each in ("invoice", "tax", "vat"))
    ends = Ends(invoice.client_context(vat.snapshot.leaf.id), tax.server_context()).shake()
    assert "expected" in str(ends.client_error)


def test_an_intention_is_seen_and_its_end_too(agent: Target, join: Any) -> None:
    """A deny flips the verdict, its removal flips it back; no question asked per request."""
    invoice, tax = join(agent.name("invoice")), join(agent.name("tax"))
    peer = meet(invoice, tax)

    def allowed() -> bool:
        return bool(tax.decide(peer, CALL).allowed)

    assert allowed()
    identity = agent.deny(invoice.settings.service, tax.settings.service)
    assert tax.wait_for(lambda _: not allowed(), PATIENCE)
    verdict = tax.decide(peer, CALL)
    assert (verdict.reason, verdict.status) == (Reason.INTENTION_DENY, 403)
    agent.forget(identity)
    assert tax.wait_for(lambda _: allowed(), PATIENCE)


def test_an_intention_for_all_sources_gives_way_to_one_for_one(agent: Target, join: Any) -> None:
    """``* -> tax`` denies all but ``invoice -> tax``, as the agent's own check says."""
    invoice, order, tax = (join(agent.name(each)) for each in ("invoice", "order", "tax"))
    peers = {mesh.settings.service: meet(mesh, tax) for mesh in (invoice, order)}
    ours = [agent.intend(invoice.settings.service, tax.settings.service, "allow")]
    ours.append(agent.deny("*", tax.settings.service))
    assert tax.wait_for(lambda seen: len(seen.intentions or ()) >= 2, PATIENCE)
    for name, peer in peers.items():
        query = f"source={name}&destination={tax.settings.service}"
        said = agent.get(f"/v1/connect/intentions/check?{query}").json()["Allowed"]
        assert tax.decide(peer, CALL).allowed is said
    assert tax.decide(peers[invoice.settings.service], CALL).allowed
    for identity in ours:
        agent.forget(identity)


def test_registered_while_it_lives(agent: Target, join: Any) -> None:
    """As Connect-native, passing, at the address given; gone when it closes."""
    name = agent.name("tax")
    mesh = join(name, port=4711, address="127.0.0.7", tags=["a"], meta={"k": "v"})
    (found,) = until(lambda: instances(agent, name), "a passing instance")
    service = found["Service"]
    assert service["Connect"].get("Native") is True
    assert (service["ID"], service["Address"], service["Port"]) == (
        f"{name}-127.0.0.7-4711",
        "127.0.0.7",
        4711,
    )
    assert service["Tags"] == ["a"] and service["Meta"]["k"] == "v"
    assert until(lambda: mesh.status()["registered"], "the mesh knows it")
    mesh.close()
    assert f"{name}-127.0.0.7-4711" not in agent.get("/v1/agent/services").json()
    assert instances(agent, name) == []


def test_a_registration_that_somebody_removes_comes_back(agent: Target, join: Any) -> None:
    """An agent that forgot us is told again, by the next heartbeat."""
    name = agent.name("tax")
    join(name, port=4711, address="127.0.0.7", check_ttl=1.0)
    until(lambda: instances(agent, name), "a passing instance")
    agent.put(f"/v1/agent/service/deregister/{name}-127.0.0.7-4711")
    until(lambda: instances(agent, name), "the instance again")


def test_withdrawn_before_the_end(agent: Target, join: Any) -> None:
    """`withdraw` takes the instance away; requests are judged as before."""
    invoice, name = join(agent.name("invoice")), agent.name("tax")
    mesh = join(name, port=4711, address="127.0.0.7")
    peer = meet(invoice, mesh)
    until(lambda: instances(agent, name), "a passing instance")
    mesh.withdraw()
    until(lambda: f"{name}-127.0.0.7-4711" not in agent.get("/v1/agent/services").json(), "its end")
    assert mesh.decide(peer, CALL).allowed


def test_an_upstream_is_followed(agent: Target, join: Any) -> None:
    """Instances come and go; each with the identity to expect, only passing and capable ones."""
    invoice, tax = join(agent.name("invoice")), agent.name("tax")
    upstream = invoice.watch_upstream(tax)
    with pytest.raises(ResolveError, match=tax):
        upstream.wait(PATIENCE)
    agent.register(Name=tax, ID=f"{tax}-plain", Port=1)
    first = join(tax, port=4711, address="127.0.0.7")
    until(lambda: upstream.endpoints, "an instance")
    (endpoint,) = upstream.wait(PATIENCE)
    assert (endpoint.address, endpoint.kind) == ("127.0.0.7:4711", "native")
    assert endpoint.expected == first.snapshot.leaf.id
    proxy = {"Proxy": {"DestinationServiceName": tax}, "Address": "127.0.0.8"}
    agent.register(Name=f"{tax}-proxy", Kind="connect-proxy", Port=4712, **proxy)
    until(lambda: len(upstream.endpoints or ()) == 2, "the proxy beside it")
    assert {each.address for each in upstream.endpoints} == {"127.0.0.7:4711", "127.0.0.8:4712"}
    assert {each.expected for each in upstream.endpoints} == {first.snapshot.leaf.id}
    first.close()
    until(lambda: len(upstream.endpoints or ()) == 1, "the proxy alone")
    agent.put(f"/v1/agent/service/deregister/{tax}-proxy")
    until(lambda: upstream.endpoints == (), "nobody")


def test_closed_means_denied(agent: Target, join: Any) -> None:
    """Afterwards nothing is allowed, no handshake succeeds, no thread is left; twice is fine."""
    invoice, tax = join(agent.name("invoice")), join(agent.name("tax"))
    peer, context = meet(invoice, tax), tax.server_context()
    expected = tax.snapshot.leaf.id
    (thread,) = (t for t in threading.enumerate() if t is tax._watcher._thread)
    tax.close()
    tax.close()
    assert not thread.is_alive()
    assert tax.decide(peer, CALL).reason is Reason.NO_POLICY
    ends = Ends(invoice.client_context(expected), context).shake()
    assert ends.server_error is not None
    with pytest.raises(NotReadyError):
        tax.watch_upstream("invoice")
    tax.start()
    assert tax.ready(PATIENCE)
    assert tax.decide(meet(invoice, tax), CALL).allowed


# -- with ACLs, denying by default -----------------------------------------------------------------

ROOT_TOKEN = "0b5f1d3e-canary-0000-0000-000000000001"
ACL = f"""
primary_datacenter = "dc1"
acl {{
  enabled = true
  default_policy = "deny"
  tokens {{ master = "{ROOT_TOKEN}" }}
}}
"""


@pytest.fixture(scope="module", params=["dev", "real"])
def strict(request: pytest.FixtureRequest) -> Iterator[Target]:
    """An agent with ACLs that denies by default; its client may do everything."""
    with ExitStack() as stack:
        if request.param == "real":
            consul = stack.enter_context(RealConsul(hcl=ACL, token=ROOT_TOKEN))
            url = consul.url
        else:
            tokens = {
                ROOT_TOKEN: management_token(),
                "for-tax": Token("tax", service={"tax": "write"}, service_prefix={"": "read"}),
            }
            url = stack.enter_context(DevAgent(default_policy="deny", acl=tokens)).url
        target = Target(request.param, url, "")
        target.client.headers["X-Consul-Token"] = ROOT_TOKEN
        stack.callback(target.close)
        yield target


def token_for_tax(strict: Target) -> str:
    """A token that a service named tax would be given: its own rights, and reading services."""
    if strict.kind == "dev":
        return "for-tax"
    wanted = {"ServiceIdentities": [{"ServiceName": "tax"}]}
    return str(strict.put("/v1/acl/token", wanted).json()["SecretID"])


@pytest.mark.parametrize("who", ["management", "tax"])
def test_a_default_deny_is_found_out(strict: Target, who: str) -> None:
    """From the agent's settings or, where the token may not read those, from its verdicts."""
    token = ROOT_TOKEN if who == "management" else token_for_tax(strict)
    root = {"agent": strict.url, "token": ROOT_TOKEN}
    with (
        Mesh("tax", agent=strict.url, token=token, port=4711) as tax,
        Mesh("invoice", **root) as invoice,
    ):
        assert tax.ready(PATIENCE) and invoice.ready(PATIENCE), tax.status()
        assert tax.snapshot.default_allow is False
        peer = meet(invoice, tax)
        assert tax.decide(peer, CALL).reason is Reason.DEFAULT_DENY
        identity = strict.intend("invoice", "tax", "allow")
        assert tax.wait_for(lambda _: tax.decide(peer, CALL).allowed, PATIENCE)
        strict.forget(identity)
        assert tax.wait_for(lambda _: not tax.decide(peer, CALL).allowed, PATIENCE)
        until(lambda: instances(strict, "tax"), "a passing instance")
        assert token not in str(tax.status()) + tax.metrics() + repr(tax)


def test_a_token_without_rights_is_told_what_it_lacks(strict: Target) -> None:
    """``service:write`` on the service, in the status; never ready, never the token."""
    with Mesh("tax", agent=strict.url, token="", port=4711) as tax:
        said = until(lambda: tax.status()["troubles"].get("leaf"), "the refusal")
        assert 'service:write on "tax"' in said
        assert not tax.ready(0)


# -- a new root ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["dev", "real"])
def alone(request: pytest.FixtureRequest) -> Iterator[Target]:
    """An agent whose CA nobody else's test needs."""
    with DevAgent() if request.param == "dev" else RealConsul() as started:
        target = Target(request.param, started.url, "")
        yield target
        target.close()


def test_a_new_root_is_lived_through(alone: Target) -> None:
    """Before, during and after the change the two services meet, at the end with new leaves."""
    with joined(alone, "invoice") as invoice, joined(alone, "tax") as tax:
        meet(invoice, tax)
        old = {mesh: mesh.snapshot.leaf.serial_number for mesh in (invoice, tax)}
        cluster = tax.snapshot.roots.trust_domain.removesuffix(".consul")
        certificate, key = ca.make_root(cluster, 4711, datetime.now(UTC))
        config = {"PrivateKey": ca.key_to_pem(key), "RootCert": ca.to_pem(certificate)}
        body = {"Provider": "consul", "Config": config}
        assert alone.put("/v1/connect/ca/configuration", body).status_code == 200
        for mesh in (tax, invoice):
            assert mesh.wait_for(lambda seen: len(seen.roots.certificates) == 2, PATIENCE)
            meet(invoice, tax)
        for mesh in (tax, invoice):
            was = old[mesh]
            assert mesh.wait_for(lambda seen, was=was: seen.leaf.serial_number != was, ROTATION)
            meet(invoice, tax)
        assert [mesh.status()["notes"] for mesh in (tax, invoice)] == [[], []]
