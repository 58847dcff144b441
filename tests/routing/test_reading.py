"""The agent's discovery chain, read."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from mesh_middleware.exceptions import AgentAnswerError
from mesh_middleware.routing import Place, Retries, parse_chain
from mesh_middleware.routing.shapes import duration

# As Consul 1.8.7 answered, cut; 1.21 adds what is marked.
ANSWER: dict[str, Any] = {
    "Chain": {
        "ServiceName": "mix", "Namespace": "default", "Datacenter": "dc1", "Protocol": "http",
        "StartNode": "router:mix.default",
        "Nodes": {
            "resolver:echo.default.dc1": {
                "Type": "resolver", "Name": "echo.default.dc1",
                "Resolver": {"ConnectTimeout": "5s", "Default": True, "Target": "echo.default.dc1"},
            },
            "resolver:v1.mix.default.dc1": {
                "Type": "resolver", "Name": "v1.mix.default.dc1",
                "Resolver": {
                    "ConnectTimeout": "3s", "RequestTimeout": 1500000000,  # an integer in 1.21
                    "Target": "v1.mix.default.dc1",
                    "Failover": {"Targets": ["v1.mix.default.dc2"]},
                },
                "LoadBalancer": {
                    "Policy": "ring_hash",
                    "HashPolicies": [{"Field": "header", "FieldValue": "x-user"}],
                },
            },
            "router:mix.default": {
                "Type": "router", "Name": "mix.default",
                "Routes": [
                    {
                        "Definition": {
                            "Match": {"HTTP": {
                                "PathPrefix": "/admin/",
                                "Header": [{"Name": "x-a", "Exact": "1", "Invert": True}],
                                "QueryParam": [{"Name": "q", "Regex": "a.*"}],
                                "Methods": ["GET"],
                            }},
                            "Destination": {
                                "RequestTimeout": "10s", "Service": "echo", "Namespace": "default",
                                "PrefixRewrite": "/", "NumRetries": 3,
                                "RetryOnConnectFailure": True, "RetryOnStatusCodes": [502, 503],
                            },
                        },
                        "NextNode": "resolver:echo.default.dc1",
                    },
                    {
                        "Definition": {"Match": {"HTTP": {"PathPrefix": "/"}},
                                       "Destination": {"Service": "mix"}},
                        "NextNode": "splitter:mix.default",
                    },
                ],
            },
            "splitter:mix.default": {
                "Type": "splitter", "Name": "mix.default",
                "Splits": [
                    {"Weight": 90, "NextNode": "resolver:v1.mix.default.dc1"},
                    {"Weight": 10, "NextNode": "resolver:echo.default.dc1"},
                ],
            },
        },
        "Targets": {
            name: {
                "ID": name, "Service": service, "ServiceSubset": subset, "Namespace": "default",
                "Datacenter": dc, "MeshGateway": {}, "Subset": {"Filter": filtered},
                "SNI": f"{name}.internal.x.consul", "Name": "",
            }
            for name, service, subset, dc, filtered in [
                ("echo.default.dc1", "echo", "", "dc1", ""),
                ("v1.mix.default.dc1", "mix", "v1", "dc1", "Service.Meta.version == v1"),
                ("v1.mix.default.dc2", "mix", "v1", "dc2", "Service.Meta.version == v1"),
            ]
        },
    }
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    """`ANSWER` with another value at one place."""
    answer = copy.deepcopy(ANSWER)
    part: Any = answer["Chain"]
    *way, last = path.split("/")
    for key in way:
        part = part[int(key) if isinstance(part, list) else key]
    part[last] = value
    return answer


def test_a_chain_of_all_kinds_of_nodes_is_read() -> None:
    """Routes, splits, resolvers and targets carry what the answer says; nothing is named vain."""
    chain = parse_chain(ANSWER, own_datacenter="dc1")
    assert (chain.service, chain.start, chain.protocol) == ("mix", "router:mix.default", "http")
    admin, rest = chain.routers["router:mix.default"]
    assert (admin.match.path_test, admin.match.path, admin.rewrite) == ("prefix", "/admin/", "/")
    assert (admin.timeout, rest.timeout, rest.retries) == (10.0, None, None)
    on, statuses, methods = {"connect-failure"}, {502, 503}, {"GET"}
    assert admin.retries == Retries(3, frozenset(on), frozenset(statuses), frozenset(methods))
    assert [split.weight for split in chain.splitters["splitter:mix.default"]] == [90, 10]
    resolution = chain.resolvers["resolver:v1.mix.default.dc1"]
    assert (resolution.connect_timeout, resolution.request_timeout) == (3.0, 1.5)
    assert resolution.failover == ("v1.mix.default.dc2",)
    assert resolution.balancing.policy == "ring_hash"
    assert chain.places() == {Place("echo"), Place("mix"), Place("mix", "dc2")}
    assert chain.unhonoured == ()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("StartNode", "nobody"),
        ("Nodes/splitter:mix.default/Splits", []),
        ("Nodes/splitter:mix.default/Splits/0/NextNode", "router:mix.default"),
        ("Nodes/splitter:mix.default/Splits/0/Weight", "much"),
        ("Nodes/resolver:echo.default.dc1/Resolver/Target", "nowhere"),
        ("Nodes/resolver:v1.mix.default.dc1/Resolver/Failover/Targets", ["nowhere"]),
        ("Nodes/resolver:echo.default.dc1/Type", "oracle"),
        ("Nodes/resolver:echo.default.dc1/Resolver/ConnectTimeout", "soon"),
        ("Nodes", []),
        ("Targets", None),
    ],
    ids=[
        "no-start", "no-splits", "cycle", "weight", "no-target", "no-failover", "kind", "duration",
        "nodes", "no-targets",
    ],
)  # fmt: skip
def test_what_is_no_chain_is_refused_whole(path: str, value: Any) -> None:
    """A graph that cannot be walked to its end is an error, so that the last chain stays."""
    with pytest.raises(AgentAnswerError):
        parse_chain(changed(path, value))


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"Chain": []}])
def test_what_is_no_answer_is_refused(answer: object) -> None:
    """Any other JSON is an `AgentAnswerError`, nothing else."""
    with pytest.raises(AgentAnswerError):
        parse_chain(answer)


@pytest.mark.parametrize(
    "criterion",
    [{"Weekday": "Monday"}, {"Header": [{"Name": "x", "Sounds": "nice"}]}, {"Header": [{}]}],
    ids=["unknown", "unknown-test", "no-test"],
)
def test_a_match_that_is_not_understood_never_holds(criterion: dict[str, Any]) -> None:
    """A route with a criterion of later versions has a flaw instead of catching more."""
    http = {"PathPrefix": "/admin/"} | criterion
    path = "Nodes/router:mix.default/Routes/0/Definition/Match/HTTP"
    chain = parse_chain(changed(path, http))
    assert chain.routers["router:mix.default"][0].match.flaw


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("Nodes/router:mix.default/Routes/0/Definition/Destination/Color", "red", "Color"),
        ("Targets/echo.default.dc1/MeshGateway", {"Mode": "local"}, "MeshGateway.Mode"),
        (
            "Nodes/resolver:v1.mix.default.dc1/LoadBalancer/HashPolicies/0/CookieConfig",
            {"TTL": "1h"},
            "CookieConfig.TTL",
        ),
    ],
    ids=["unknown", "gateway", "cookie"],
)
def test_fields_without_effect_are_named(path: str, value: Any, named: str) -> None:
    """What is set and does nothing here stands in `unhonoured`, once."""
    found = parse_chain(changed(path, value)).unhonoured
    assert len(found) == 1 and named in found[0]


@pytest.mark.parametrize("scope", [{"Peer": "east"}, {"Namespace": "a"}, {"Partition": "b"}])
def test_targets_out_of_reach_have_a_flaw(scope: dict[str, str]) -> None:
    """A peered cluster, another namespace or partition is never looked up under our own names."""
    target = ANSWER["Chain"]["Targets"]["echo.default.dc1"] | scope
    chain = parse_chain(changed("Targets/echo.default.dc1", target))
    assert chain.targets["echo.default.dc1"].flaw
    assert Place("echo", "dc1") not in chain.places()


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "x y", ""])
def test_headers_that_frame_a_message_are_not_changed(name: str) -> None:
    """Neither set, added nor removed: a route must not say where a message ends."""
    path = "Nodes/router:mix.default/Routes/0/Definition/Destination/RequestHeaders"
    changes = {"Set": {name: "1", "x-ok": "1"}, "Add": {name: "1"}, "Remove": [name]}
    route = parse_chain(changed(path, changes)).routers["router:mix.default"][0]
    assert route.request_headers.set == (("x-ok", "1"),)
    assert (route.request_headers.add, route.request_headers.remove) == ((), ())


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1m30s", 90), ("1.5h", 5400), ("500ms", 0.5), ("-1s", -1), ("0", 0), ("", 0), (None, 0),
     (2_000_000_000, 2)],
)  # fmt: skip
def test_durations_are_gos(value: object, seconds: float) -> None:
    """Texts with units, integers of nanoseconds."""
    assert duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["1", "s", "1 s", "1x", "1s2", True, [], "--1s"])
def test_what_is_no_duration_is_refused(value: object) -> None:
    """Never guessed."""
    with pytest.raises(AgentAnswerError):
        duration(value)
