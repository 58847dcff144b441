"""Truth tables: what is known of the caller and of the rules, against each default policy."""

from __future__ import annotations

import pytest

from mesh_middleware.identity import parse_spiffe_id
from mesh_middleware.intentions import Reason, matchers

from .support import TD, Json, ask, facts, header, intention, permission, policy, source

DEFAULTS = (True, False, None)
MISSED = {
    True: Reason.DEFAULT_ALLOW,
    False: Reason.DEFAULT_DENY,
    None: Reason.DEFAULT_UNKNOWN,
}

L4_ALLOW = [intention()]
L4_DENY = [intention(Action="deny")]
L7_ALLOW = [intention(Permissions=[permission(PathPrefix="/v1")])]
L7_DENY = [intention(Permissions=[permission("deny", PathPrefix="/v1")])]
UNREADABLE: dict[str, tuple[Json, Reason]] = {
    "no action": (intention(Action=""), Reason.UNKNOWN_ACTION),
    "another action": (intention(Action="ask"), Reason.UNKNOWN_ACTION),
    "action and permissions": (
        intention(Action="allow", Permissions=[permission()]),
        Reason.UNKNOWN_ACTION,
    ),
    "unknown field of a permission": (
        intention(Permissions=[{**permission(), "New": 1}, permission()]),
        Reason.UNKNOWN_FIELD,
    ),
    "unknown criterion": (intention(Permissions=[permission(Body="x")]), Reason.UNKNOWN_FIELD),
    "no criteria": (
        intention(Permissions=[{"Action": "allow", "HTTP": {}}]),
        Reason.EMPTY_CRITERIA,
    ),
    "no HTTP": (intention(Permissions=[{"Action": "allow"}]), Reason.EMPTY_CRITERIA),
    "a header without a test": (
        intention(Permissions=[permission(**header("x-a"))]),
        Reason.EMPTY_CRITERIA,
    ),
    "two paths": (
        intention(Permissions=[permission(PathExact="/", PathPrefix="/")]),
        Reason.CONFLICTING_CRITERIA,
    ),
    "two tests": (
        intention(Permissions=[permission(**header("x-a", Exact="1", Prefix="1"))]),
        Reason.CONFLICTING_CRITERIA,
    ),
    "a number for a path": (
        intention(Permissions=[permission(PathExact=1)]),
        Reason.UNREADABLE_PERMISSION,
    ),
    "a lower-case method": (
        intention(Permissions=[permission(Methods=["get"])]),
        Reason.UNREADABLE_PERMISSION,
    ),
    "another precedence": (intention(Precedence=10), Reason.UNREADABLE_PERMISSION),
}
NOBODY_KNOWS_WHOM: dict[str, tuple[Json, Reason]] = {
    "no source": (intention(""), Reason.UNREADABLE_SOURCE),
    "part of a wildcard": (intention("ap*"), Reason.UNREADABLE_SOURCE),
    "any namespace, one name": (intention(SourceNS="*"), Reason.UNREADABLE_SOURCE),
    "a sameness group": (intention(SourceSamenessGroup="g"), Reason.UNREADABLE_SOURCE),
    "another type": (intention(SourceType="spiffe"), Reason.UNREADABLE_SOURCE),
    "no object": ("api", Reason.UNREADABLE_SOURCE),  # type: ignore[dict-item]
    "a number for a name": (intention(5), Reason.UNREADABLE_SOURCE),  # type: ignore[arg-type]
    "an unknown field": (intention(SourceRegion="eu"), Reason.UNKNOWN_FIELD),
}


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("rules", [[], L4_ALLOW, L4_DENY, L7_ALLOW, L7_DENY])
def test_without_a_peer_nobody_passes(default: bool | None, rules: list[Json]) -> None:
    """No certificate: denied, whatever the rules and the default say."""
    judge = policy(intention("*"), *rules, default_allow=default)
    assert judge.decide(None, facts("/v1")).reason is Reason.NO_PEER
    assert judge.decide_connection(None).reason is Reason.NO_PEER
    assert not judge.may_connect(None)


STRANGERS = {
    "spiffe://other.consul/ns/default/dc/dc1/svc/api": Reason.FOREIGN_TRUST_DOMAIN,
    f"spiffe://{TD}/gateway/mesh/dc/dc1": Reason.PEER_NOT_SERVICE,
    f"spiffe://{TD}/agent/client/dc/dc1/id/n": Reason.PEER_NOT_SERVICE,
    f"spiffe://{TD}/agent/server/dc/dc1": Reason.PEER_NOT_SERVICE,
    f"spiffe://{TD}": Reason.PEER_NOT_SERVICE,
}


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize(("uri", "reason"), STRANGERS.items())
def test_a_peer_that_is_no_service_of_ours_never_passes(
    default: bool | None, uri: str, reason: Reason
) -> None:
    """Gateways, agents, servers and other trust domains are refused under every default."""
    judge = policy(intention("*"), intention("*", SourceNS="*"), default_allow=default)
    stranger = parse_spiffe_id(uri)
    assert judge.decide(stranger, facts()).reason is reason
    assert judge.decide_connection(stranger).reason is reason
    assert not judge.may_connect(stranger)


@pytest.mark.parametrize("default", DEFAULTS)
def test_actions_decide_and_misses_take_the_default(default: bool | None) -> None:
    """L4 and L7, hit and miss, in one table; an unknown default denies with 503."""

    def reason(rules: list[Json], target: str = "/v1/x") -> Reason:
        verdict = ask(policy(*rules, default_allow=default), target)
        assert verdict.allowed is verdict.reason.allows
        return verdict.reason

    assert reason([]) is MISSED[default]
    assert reason([intention("web")]) is MISSED[default]
    assert reason(L4_ALLOW) is Reason.INTENTION_ALLOW
    assert reason(L4_DENY) is Reason.INTENTION_DENY
    assert reason(L7_ALLOW) is Reason.PERMISSION_ALLOW
    assert reason(L7_DENY) is Reason.PERMISSION_DENY
    assert reason(L7_ALLOW, "/else") is reason(L7_DENY, "/else") is MISSED[default]


@pytest.mark.parametrize("default", DEFAULTS)
def test_on_a_connection_permissions_are_a_denial(default: bool | None) -> None:
    """Where only a connection is judged (tcp, `check`), a source with permissions is denied."""
    for rules in (L7_ALLOW, L7_DENY):
        judge = policy(*rules, default_allow=default)
        assert judge.decide_connection(source()).reason is Reason.PERMISSIONS_ON_CONNECTION
        assert judge.may_connect(source())
        tcp = policy(*rules, default_allow=default, protocol="tcp")
        assert tcp.decide(source(), facts("/v1")).reason is Reason.PERMISSIONS_ON_CONNECTION
        assert not tcp.may_connect(source())
    judge = policy(default_allow=default)
    assert judge.decide_connection(source()).reason is MISSED[default]


@pytest.mark.parametrize("reading", ["strict", "envoy"])
@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_denies_its_source(
    reading: str, default: bool | None, what: str
) -> None:
    """An unreadable permission or action denies every request of the source, and of it alone."""
    item, reason = UNREADABLE[what]
    judge = policy(item, intention("web"), default_allow=default, reading=reading)
    for target in ("/", "/v1", "/%2f"):
        verdict = ask(judge, target)
        assert (verdict.allowed, verdict.reason) == (False, reason)
    assert judge.decide_connection(source()).allowed is False
    assert ask(judge, caller=source("web")).allowed


@pytest.mark.parametrize("reading", ["strict", "envoy"])
@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("what", NOBODY_KNOWS_WHOM)
def test_a_source_that_cannot_be_read_denies_everyone(
    reading: str, default: bool | None, what: str
) -> None:
    """Where it cannot be told whom an intention is about, it could be about anyone."""
    item, reason = NOBODY_KNOWS_WHOM[what]
    judge = policy(intention("web"), item, default_allow=default, reading=reading)
    for name in ("api", "web", "else"):
        verdict = ask(judge, caller=source(name))
        assert (verdict.allowed, verdict.reason) == (False, reason)
        assert not judge.may_connect(source(name))


@pytest.mark.parametrize("reading", ["strict", "envoy"])
@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("action", ["allow", "deny"])
@pytest.mark.parametrize("http", [{"PathRegex": "/.*"}, header("x-a", Regex=".*")])
def test_without_the_regex_engine_a_pattern_denies(
    monkeypatch: pytest.MonkeyPatch, reading: str, default: bool | None, action: str, http: Json
) -> None:
    """Without the extra ``re2`` each request of a source with a pattern is denied, and no other."""
    monkeypatch.setattr(matchers, "engine", lambda: None)
    matchers.regex_flaw.cache_clear()
    try:
        rules = [intention(Permissions=[permission(), permission(action, **http)])]
        judge = policy(*rules, intention("web"), default_allow=default, reading=reading)
        verdict = ask(judge, "/v1")
        assert (verdict.allowed, verdict.reason) == (False, Reason.NO_REGEX_ENGINE)
        assert ask(judge, caller=source("web")).allowed
    finally:
        matchers.regex_flaw.cache_clear()


@pytest.mark.parametrize("default", DEFAULTS)
def test_a_pattern_over_the_budget_denies_its_source(default: bool | None) -> None:
    """A pattern of too many instructions is refused before it is ever used."""
    large = "(?:a{1000}b{1000})" * 60
    judge = policy(
        intention(Permissions=[permission(), permission(PathRegex=large)]), default_allow=default
    )
    assert ask(judge).reason is Reason.PATTERN_TOO_LARGE


def test_a_flawed_wildcard_leaves_exact_sources_alone() -> None:
    """An unreadable ``*`` intention is about those without one of their own."""
    judge = policy(intention("*", Action="?"), intention("api"))
    assert ask(judge).allowed
    assert ask(judge, caller=source("else")).reason is Reason.UNKNOWN_ACTION
