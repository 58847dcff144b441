"""Names of upstreams, and the agent's answers about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware.exceptions import AgentAnswerError, ResolveError
from mesh_middleware.identity import ServiceId
from mesh_middleware.resolve import (
    Endpoint,
    StaticResolver,
    Upstream,
    parse_health,
    parse_query,
    parse_upstream,
)
from mesh_middleware.upstreams import UpstreamWatch

from .support import TRUST_DOMAIN, service_id

RECORDED = Path(__file__).parents[1] / "data" / "consul"


@pytest.mark.parametrize(
    ("host", "upstream"),
    [
        ("tax", Upstream("tax")),
        ("TAX", Upstream("tax")),
        ("tax.", Upstream("tax")),
        ("tax_2-b", Upstream("tax_2-b")),
        ("tax.service.consul", Upstream("tax")),
        ("tax.service.consul.", Upstream("tax")),
        ("tax.service.dc2.consul", Upstream("tax", "dc2")),
        ("tax.connect.consul", Upstream("tax", kind="connect")),
        ("tax.connect.dc1.consul", Upstream("tax", "dc1", kind="connect")),
        ("near.query.consul", Upstream("near", kind="query")),
        ("near.query.dc3.consul", Upstream("near", "dc3", kind="query")),
        ("service.service.consul", Upstream("service")),
        ("connect.connect.query.consul", Upstream("connect", "query", kind="connect")),
        ("tax.service.team.ns.consul", Upstream("tax", None, "team")),
        ("tax.service.team.ns.eu.ap.dc2.dc.consul", Upstream("tax", "dc2", "team", "eu")),
        ("tax.service.eu.ap.team.ns.consul", Upstream("tax", None, "team", "eu")),
    ],
)
def test_names_are_read(host: str, upstream: Upstream) -> None:
    """Every documented form of a name says service, datacenter, namespace and partition."""
    assert parse_upstream(host) == upstream


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("10.0.0.1", "address"),
        ("::1", "address"),
        ("[::1]", "address"),
        ("localhost", "address"),
        ("example.com", "not in the mesh"),
        ("tax.service.example", "not in the mesh"),
        ("taxconsul", None),
        ("tax.consul", "<name>.service"),
        ("tax.service", "not in the mesh"),
        ("v1.tax.service.consul", "tags"),
        ("_tax._tcp.service.consul", "tags"),
        ("tax.virtual.consul", "<name>.service"),
        ("tax.service.a.b.consul", "'b' is no scope"),
        ("tax.service.a.ns.b.ns.consul", "'ns' is no scope"),
        ("tax.service.a.ns.b.consul", "lacks its marker"),
        ("-tax", "not 1 to 63"),
        ("tax%2e", "not 1 to 63"),
        ("täx", "not 1 to 63"),
        ("a" * 64, "not 1 to 63"),
        ("", "not 1 to 63"),
        (".consul", "<name>.service"),
        (".service.consul", "not 1 to 63"),
        ("tax..consul", "<name>.service"),
        ("tax\n", "not 1 to 63"),
    ],
)
def test_other_names_are_refused(host: str, said: str | None) -> None:
    """What is no name of an upstream is an error that says why, never a guess."""
    if said is None:
        assert parse_upstream(host) == Upstream(host)
        return
    with pytest.raises(ResolveError, match=said):
        parse_upstream(host)


def test_the_domain_and_datacenter_are_settings() -> None:
    """Consul's DNS domain can be another; a datacenter in the name wins over the default."""
    assert parse_upstream("tax.service.mesh.example", domain="mesh.example.") == Upstream("tax")
    with pytest.raises(ResolveError, match="not in the mesh"):
        parse_upstream("tax.service.consul", domain="mesh.example")
    assert parse_upstream("tax", datacenter="dc9").datacenter == "dc9"
    assert parse_upstream("tax.service.dc2.consul", datacenter="dc9").datacenter == "dc2"


def _recorded(version: str, name: str) -> Any:
    return json.loads((RECORDED / version / name).read_text())["body"]


@pytest.mark.parametrize("version", ["1.8.7", "1.10.1"])
def test_recorded_answers_are_read(version: str) -> None:
    """What real agents said is understood: native, sidecar with a failing check, none, query."""
    tax = Endpoint("127.0.0.1", 5002, service_id("tax"), 10)
    native = _recorded(version, "15-health-native.json")
    assert parse_health(native, trust_domain=TRUST_DOMAIN, service="tax") == (tax,)
    sidecar = _recorded(version, "16-health-sidecar.json")
    assert parse_health(sidecar, trust_domain=TRUST_DOMAIN, service="invoice") == ()
    for check in sidecar[0]["Checks"]:
        check["Status"] = "passing"
    assert parse_health(sidecar, trust_domain=TRUST_DOMAIN, service="invoice") == (
        Endpoint("127.0.0.1", 21000, service_id("invoice"), 1, "sidecar"),
    )
    none = _recorded(version, "17-health-none.json")
    assert parse_health(none, trust_domain=TRUST_DOMAIN, service="none") == ()
    query = _recorded(version, "54-query-execute.json")
    assert parse_query(query, trust_domain=TRUST_DOMAIN) == (tax,)


def _entry(**service: Any) -> dict[str, Any]:
    plain = {"Service": "tax", "Address": "10.0.0.5", "Port": 8443, "Connect": {"Native": True}}
    return {
        "Node": {"Address": "10.0.0.1", "Datacenter": "dc1"},
        "Service": {**plain, **service},
        "Checks": [],
    }


def _read(*entries: Any) -> tuple[Endpoint, ...]:
    return parse_health(list(entries), trust_domain=TRUST_DOMAIN, service="tax")


def test_the_datacenter_of_the_identity_is_the_nodes() -> None:
    """An instance of another datacenter has to prove that datacenter's identity."""
    entry = _entry(Datacenter="dc1")
    entry["Node"]["Datacenter"] = "dc2"
    assert _read(entry)[0].expected == service_id("tax", "dc2")


def test_namespace_and_partition_belong_to_the_identity() -> None:
    """Enterprise instances have to prove their namespace and partition."""
    (found,) = _read(_entry(Namespace="team", Partition="eu"))
    assert found.expected == ServiceId(TRUST_DOMAIN, "team", "dc1", "tax", "eu")


def test_an_empty_service_address_means_the_nodes() -> None:
    """Services registered without an address live at their node's."""
    assert _read(_entry(Address=""))[0].host == "10.0.0.1"


@pytest.mark.parametrize(
    "service",
    [
        {"Port": 0},
        {"Weights": {"Passing": 0, "Warning": 0}},
        {"PeerName": "cluster-02"},
        {"Connect": {}},
        {"Connect": None},
        {"Kind": "mesh-gateway", "Connect": {}},
        {"Kind": "ingress-gateway"},
        {"Kind": "something-new"},
    ],
    ids=str,
)
def test_instances_that_cannot_be_called_are_left_out(service: dict[str, Any]) -> None:
    """No port, no weight, another cluster's, a gateway, or not in the mesh: left out."""
    assert [found.port for found in _read(_entry(**service), _entry(Port=1))] == [1]


def test_a_terminating_gateway_stands_for_the_service_asked_for() -> None:
    """It has to show the leaf of that service; a prepared query does not say which that is."""
    entry = _entry(Kind="terminating-gateway", Connect={}, Service="gateway", Port=1)
    (found,) = _read(entry)
    assert (found.kind, found.expected.name) == ("gateway", "tax")
    assert parse_query({"Nodes": [entry]}, trust_domain=TRUST_DOMAIN) == ()


def test_a_missing_port_and_null_parts_are_read() -> None:
    """Consul leaves out a port of 0 and writes null for empty maps."""
    entry = _entry(Meta=None, Weights=None, Kind="")
    assert len(_read(entry)) == 1
    del entry["Service"]["Port"]
    assert _read(entry) == ()


@pytest.mark.parametrize(
    ("statuses", "weight"),
    [
        ((), 10),
        (("passing", "passing"), 10),
        (("passing", "warning"), 3),
        (("critical", "passing"), None),
        (("warning", "critical"), None),
        (("maintenance",), None),
        (("",), None),
    ],
    ids=str,
)
def test_weights_follow_the_checks(statuses: tuple[str, ...], weight: int | None) -> None:
    """A warning lowers an instance's share; anything worse, or unknown, takes it away."""
    entry = _entry(Weights={"Passing": 10, "Warning": 3})
    entry["Checks"] = [{"Status": status} for status in statuses]
    assert [found.weight for found in _read(entry)] == ([] if weight is None else [weight])


def test_weights_are_capped() -> None:
    """One instance cannot weigh more than Envoy would let it."""
    assert _read(_entry(Weights={"Passing": 9999}))[0].weight == 128


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        "[]",
        [None],
        [[]],
        [{}],
        [{"Node": {}, "Service": None}],
        [_entry(Port="80")],
        [_entry(Port=True)],
        [_entry(Port=65536)],
        [_entry(Port=-1)],
        [_entry(Service="")],
        [_entry(Service=7)],
        [_entry(Service="other")],
        [_entry(Address=7)],
        [_entry(Connect=[])],
        [_entry(Weights={"Passing": "1"})],
        [_entry(Weights={"Passing": -1})],
        [_entry(Kind="connect-proxy", Proxy=None)],
        [_entry(Kind="connect-proxy", Proxy={})],
        [_entry(Kind="connect-proxy", Proxy={"DestinationServiceName": "other"})],
        [{**_entry(), "Checks": {}}],
        [{**_entry(), "Checks": [1]}],
        [{**_entry(Address=""), "Node": {"Datacenter": "dc1"}}],
        [{**_entry(), "Node": {"Address": "10.0.0.1"}}],
    ],
    ids=lambda answer: str(answer)[:60],
)
def test_answers_that_break_the_api_are_errors(answer: object) -> None:
    """A shape Consul does not send is refused whole, so that the last good answer stays."""
    with pytest.raises(AgentAnswerError):
        parse_health(answer, trust_domain=TRUST_DOMAIN, service="tax")


def test_a_trust_domain_that_is_none_is_an_error() -> None:
    """Identities are only expected in a trust domain that can be one."""
    with pytest.raises(AgentAnswerError, match="trust domain"):
        parse_health([_entry()], trust_domain="No Domain", service="tax")


def test_names_differ_in_case_only_as_consul_looks_them_up() -> None:
    """Consul's look-up ignores case; the identity is spelled as it was registered."""
    assert _read(_entry(Service="Tax"))[0].expected.name == "Tax"


def test_addresses_are_written_as_urls_do() -> None:
    """IPv6 goes into brackets."""
    assert Endpoint("::1", 80, service_id("tax")).address == "[::1]:80"
    assert Endpoint("10.0.0.1", 80, service_id("tax")).address == "10.0.0.1:80"


def test_the_static_resolver_knows_what_it_was_given() -> None:
    """Known names give their instances; others, and queries, are errors."""
    endpoint = Endpoint("10.0.0.1", 80, service_id("tax"))
    resolver = StaticResolver({"tax": [endpoint]})
    assert tuple(resolver.resolve(Upstream("tax"))) == (endpoint,)
    for upstream in (Upstream("other"), Upstream("tax", kind="query")):
        with pytest.raises(ResolveError, match="no such upstream"):
            resolver.resolve(upstream)


@pytest.mark.parametrize(
    "name",
    [
        "tax.service",
        "tax.service.dc2",
        "tax.service.team.ns",
        "tax.service.eu.ap",
        "tax.service.team.ns.eu.ap.dc2.dc",
    ],
)
def test_an_upstream_is_told_as_it_was_named(name: str) -> None:
    """Two scopes are two upstreams in errors, pools and logs."""
    upstream = parse_upstream(f"{name}.consul")
    assert str(upstream) == name
    assert str(UpstreamWatch(upstream)) == name.replace(".service", "")


def test_the_static_resolver_gives_nobody_from_elsewhere() -> None:
    """Who names a datacenter, namespace or partition is not given an instance of another."""
    here, there = (Endpoint("10.0.0.1", 80, service_id("tax", dc)) for dc in ("dc1", "dc2"))
    resolver = StaticResolver({"tax": [here, there], "none": []})
    assert tuple(resolver.resolve(Upstream("tax"))) == (here, there)
    assert tuple(resolver.resolve(Upstream("tax", "dc2"))) == (there,)
    assert tuple(resolver.resolve(Upstream("none", "dc2"))) == ()
    for upstream in (
        Upstream("tax", "dc3"),
        Upstream("tax", namespace="team"),
        Upstream("tax", partition="eu"),
    ):
        with pytest.raises(ResolveError, match="elsewhere"):
            resolver.resolve(upstream)
