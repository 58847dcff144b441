"""What an intention or config entry may say, and which of them decides."""

from __future__ import annotations

from typing import Any

import pytest

from mesh_middleware.dev import DevAgent, Refusal
from mesh_middleware.dev.entries import read_entry
from mesh_middleware.dev.intentions import (
    Verdict,
    decide,
    flatten,
    normalize_entry,
    precedence,
    ranked,
    validate_entry,
)

HTTP = {"PathPrefix": "/"}


def entry(*sources: dict[str, Any], name: str = "web", **fields: Any) -> dict[str, Any]:
    """A service-intentions entry."""
    return {"Kind": "service-intentions", "Name": name, "Sources": list(sources), **fields}


def permitted(*permissions: dict[str, Any]) -> dict[str, Any]:
    """A source with permissions."""
    return {"Name": "a", "Permissions": list(permissions)}


def http(**parts: Any) -> dict[str, Any]:
    """A source with one permission."""
    return permitted({"Action": "allow", "HTTP": parts})


ALLOW = {"Name": "a", "Action": "allow"}
AT = "Sources[0].Permissions[0]"
BROKEN = {
    "no name": (entry(ALLOW, name=""), "Name is required"),
    "partial wildcard": (
        entry(ALLOW, name="we*"),
        "Name: wildcard character '*' cannot be used with partial values",
    ),
    "no sources": (entry(), "At least one source is required"),
    "no source name": (entry({"Action": "allow"}), "Sources[0].Name is required"),
    "partial source": (
        entry({"Name": "a*", "Action": "allow"}),
        "Sources[0].Name: wildcard character '*' cannot be used with partial values",
    ),
    "any peer": (
        entry({"Name": "a", "Action": "allow", "Peer": "*"}),
        "Sources[0].Peer cannot be set to wildcard '*'",
    ),
    "no action": (entry({"Name": "a"}), "Sources[0].Action must be set to 'allow' or 'deny'"),
    "strange action": (
        entry(ALLOW, {"Name": "b", "Action": "maybe"}),
        "Sources[1].Action must be set to 'allow' or 'deny'",
    ),
    "action and permissions": (
        entry({**permitted({"Action": "allow", "HTTP": HTTP}), "Action": "allow"}),
        "Sources[0].Action must be omitted if Permissions are specified",
    ),
    "permissions for any": (
        entry(http(**HTTP), name="*"),
        "Sources[0].Permissions cannot be specified on intentions with wildcarded destinations",
    ),
    "type": (
        entry({**ALLOW, "Type": "other"}),
        "Sources[0].Type must be set to 'consul'",
    ),
    "twice": (entry(ALLOW, ALLOW), 'Sources[1] defines "a" more than once'),
    "description": (
        entry({**ALLOW, "Description": "x" * 513}),
        "Sources[0].Description exceeds maximum length 512",
    ),
    "permission action": (
        entry(permitted({"HTTP": HTTP})),
        f"{AT}.Action must be set to 'allow' or 'deny'",
    ),
    "no http": (entry(permitted({"Action": "allow"})), f"{AT}.HTTP is required"),
    "empty http": (entry(http()), f"{AT}.HTTP should not be empty"),
    "empty parts": (
        entry(http(PathExact="", Methods=[])),
        f"{AT}.HTTP should not be empty",
    ),
    "relative exact": (
        entry(http(PathExact="x")),
        f"{AT}.HTTP.PathExact doesn't start with '/': \"x\"",
    ),
    "relative prefix": (
        entry(http(PathPrefix="x")),
        f"{AT}.HTTP.PathPrefix doesn't start with '/': \"x\"",
    ),
    "two paths": (
        entry(http(PathExact="/a", PathRegex=".*")),
        f"{AT}.HTTP should only contain at most one of PathExact, PathPrefix, or PathRegex",
    ),
    "nameless header": (
        entry(http(Header=[{"Present": True}])),
        f"{AT}.HTTP.Header[0] missing required Name field",
    ),
    "two matchers": (
        entry(http(Header=[{"Name": "x", "Exact": "1", "Prefix": "2"}])),
        f"{AT}.HTTP.Header[0] should only contain one of Present, Exact, Prefix, Suffix,"
        " Contains, or Regex",
    ),
    "no matcher": (
        entry(http(Header=[{"Name": "x", "Invert": True}])),
        f"{AT}.HTTP.Header[0] should only contain one of Present, Exact, Prefix, Suffix,"
        " Contains, or Regex",
    ),
    "ignore case of regex": (
        entry(http(Header=[{"Name": "x", "Regex": "a", "IgnoreCase": True}])),
        f"{AT}.HTTP.Header[0] should set one of Exact, Prefix, Suffix, or Contains when using"
        " IgnoreCase",
    ),
    "method": (
        entry(http(Methods=["FETCH"])),
        f'{AT}.HTTP.Methods contains an invalid method "FETCH"',
    ),
    "method twice": (
        entry(http(Methods=["GET", "get"])),
        f'{AT}.HTTP.Methods contains "GET" more than once',
    ),
    "many metas": (
        entry(ALLOW, Meta={str(n): "" for n in range(65)}),
        "Meta exceeds maximum element count 64",
    ),
    "meta key": (
        entry(ALLOW, Meta={"k" * 129: ""}),
        f'Meta key "{"k" * 129}" exceeds maximum length 128',
    ),
    "meta value": (
        entry(ALLOW, Meta={"k": "v" * 513}),
        'Meta value for key "k" exceeds maximum length 512',
    ),
    "unknown provider": (
        entry(ALLOW, JWT={"Providers": [{"Name": "okta"}]}),
        "Referenced JWT Provider does not exist. Provider Name: okta",
    ),
    "unknown provider of a permission": (
        entry(permitted({"Action": "allow", "HTTP": HTTP, "JWT": {"Providers": [{"Name": "x"}]}})),
        "Referenced JWT Provider does not exist. Provider Name: x",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_intention_is_refused_with_its_rule(case: str) -> None:
    """500, with the message that names the place and the rule."""
    body, text = BROKEN[case]
    with pytest.raises(Refusal) as caught:
        validate_entry(body)
    assert (caught.value.status, caught.value.text) == (500, text)


@pytest.mark.parametrize(
    "source",
    [
        ALLOW,
        {"Name": "*", "Action": "deny", "Description": "x" * 512},
        http(PathRegex="not/rooted"),
        http(Methods=["get", "PoSt"]),
        http(Header=[{"Name": "x", "Contains": "1", "IgnoreCase": True, "Invert": True}]),
        {"Name": "a", "Action": "allow", "Peer": "cluster-02"},
    ],
)
def test_sound_intention_passes(source: dict[str, Any]) -> None:
    """Everything the model allows can be stored."""
    validate_entry(entry(source, JWT={"Providers": [{"Name": "okta"}]}), providers=["okta"])


@pytest.mark.parametrize(
    ("source", "destination", "rank"),
    [("a", "b", 9), ("*", "b", 8), ("a", "*", 6), ("*", "*", 5)],
)
def test_precedence_of_the_community_edition(source: str, destination: str, rank: int) -> None:
    """The destination's exactness counts first."""
    assert precedence(source, destination) == rank


def test_normalizing_sorts_and_fills_in() -> None:
    """Highest precedence first, methods in upper case, empty parts gone, type consul."""
    wild = {"Name": "*", "Action": "deny", "Description": ""}
    source = http(Methods=["get"], PathExact="", PathPrefix="/v1")
    stored = normalize_entry(entry(wild, source))["Sources"]
    assert [one["Name"] for one in stored] == ["a", "*"]
    assert stored[0]["Permissions"] == [
        {"Action": "allow", "HTTP": {"PathPrefix": "/v1", "Methods": ["GET"]}}
    ]
    assert stored[1] == {"Name": "*", "Action": "deny", "Precedence": 8, "Type": "consul"}


def flat(*pairs: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Ranked intentions of (source, destination, action)."""
    found = []
    for source, destination, action in pairs:
        stored = normalize_entry(entry({"Name": source, "Action": action}, name=destination))
        found += flatten({**stored, "CreateIndex": 1, "ModifyIndex": 1})
    return ranked(found)


DEFAULT = Verdict(True, "default")


@pytest.mark.parametrize(
    ("pairs", "allowed", "reason"),
    [
        ([], True, "default"),
        ([("b", "web", "deny")], True, "default"),
        ([("a", "web", "deny"), ("*", "web", "allow")], False,
         "Matched L4 intention: default/a => default/web (Precedence: 9, Action: DENY)"),
        ([("*", "web", "allow"), ("a", "*", "deny")], True,
         "Matched L4 intention: default/* => default/web (Precedence: 8, Action: ALLOW)"),
        ([("*", "*", "deny")], False,
         "Matched L4 intention: default/* => default/* (Precedence: 5, Action: DENY)"),
    ],
    ids=["none", "other-source", "exact-first", "destination-first", "everything"],
)  # fmt: skip
def test_first_match_decides(pairs: list[tuple[str, str, str]], allowed: bool, reason: str) -> None:
    """By precedence; else the default."""
    assert decide(flat(*pairs), "a", DEFAULT) == Verdict(allowed, reason)


def test_peers_are_never_matched_by_name() -> None:
    """An intention for a peered cluster's service is not for the local one of that name."""
    stored = normalize_entry(entry({"Name": "a", "Action": "deny", "Peer": "other"}))
    (item,) = flatten({**stored, "CreateIndex": 1, "ModifyIndex": 1})
    assert item["SourcePeer"] == "other"
    assert decide([item], "a", DEFAULT) == DEFAULT


# Entries against each other


@pytest.fixture
def agent() -> DevAgent:
    """An agent that listens nowhere."""
    return DevAgent()


def test_jwt_provider_must_exist_and_may_not_go(agent: DevAgent) -> None:
    """An intention that refers to a provider needs it, as long as it refers."""
    provider = {"Kind": "jwt-provider", "Name": "okta", "Issuer": "i"}
    wanted = entry(ALLOW, JWT={"Providers": [{"Name": "okta"}]})
    with pytest.raises(Refusal, match="Provider Name: okta"):
        agent.put_entry(wanted)
    agent.put_entry(provider)
    agent.put_entry(wanted)
    with pytest.raises(Refusal, match="referenced by an intention"):
        agent.state.delete_entry("jwt-provider", "okta")
    agent.state.delete_entry("service-intentions", "web")
    assert agent.state.delete_entry("jwt-provider", "okta")


def test_protocol_of_proxy_defaults_is_enough(agent: DevAgent) -> None:
    """Without a service-defaults, the global protocol makes a service http."""
    with pytest.raises(Refusal, match='has protocol "tcp"'):
        agent.permissions("a", "web", [{"Action": "allow", "HTTP": HTTP}])
    agent.put_entry({"Kind": "proxy-defaults", "Config": {"protocol": "http"}})
    agent.permissions("a", "web", [{"Action": "allow", "HTTP": HTTP}])
    with pytest.raises(Refusal, match='has protocol "tcp"'):
        agent.set_protocol("web", "tcp")
    with pytest.raises(Refusal, match='has protocol "tcp"'):
        agent.state.delete_entry("proxy-defaults", "global")


def test_router_needs_its_subsets(agent: DevAgent) -> None:
    """A route to a subset that no resolver defines is refused."""
    agent.set_protocol("web", "http")
    router = {
        "Kind": "service-router",
        "Name": "web",
        "Routes": [{"Destination": {"ServiceSubset": "v2"}}],
    }
    with pytest.raises(Refusal, match='does not have a subset named "v2"'):
        agent.put_entry(router)
    agent.put_entry({"Kind": "service-resolver", "Name": "web", "Subsets": {"v2": {}}})
    agent.put_entry(router)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ([], "the body is no object"),
        ({"Name": "x"}, "does not contain a kind/Kind key"),
        ({"Kind": "service-defaults", "Name": "x", "Sources": [], "mesh_gateway": 1, "Z": 1},
         "2 errors occurred:\n\t* invalid config key \"Sources\"\n\t* invalid config key \"Z\""),
        (entry({"Name": "x", "Action": 1}), "cannot unmarshal number"),
        ({"Kind": "service-splitter", "Name": "x", "Splits": {}}, "cannot unmarshal object"),
        ({"Kind": "service-resolver", "Name": "x", "ConnectTimeout": "x"}, "invalid duration"),
        ({"Kind": "service-resolver", "Name": "x", "ConnectTimeout": True}, "into a duration"),
        ({"Kind": "service-resolver", "Name": "x", "Subsets": []}, "into a map"),
        (entry({"Name": "x", "Permissions": [{"HTTP": 3}]}), "into an object"),
    ],
)  # fmt: skip
def test_unreadable_entry_says_what_is_wrong(body: Any, text: str) -> None:
    """400: unknown keys all at once, and the type that was found."""
    with pytest.raises(Refusal) as caught:
        read_entry(body)
    assert caught.value.status == 400 and text in caught.value.text


def test_entry_without_a_name_is_refused() -> None:
    """500, as for the content of entries."""
    with pytest.raises(Refusal, match="Name is required"):
        read_entry({"Kind": "service-defaults"})
