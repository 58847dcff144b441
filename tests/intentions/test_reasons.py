"""Each reason code of the engine is reached by a request; the others belong to those around it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from mesh_middleware.cli.batch import Batch, judge
from mesh_middleware.intentions import ABOUT, Decision, Normalization, Reason, jws, matchers

from . import test_jwt as tokens
from .support import TD, ask, facts, header, intention, permission, policy, source

ELSEWHERE = {
    Reason.EXEMPT: "doors",
    Reason.PEER_EXPIRED: "mesh",
    Reason.NO_POLICY: "mesh",
    Reason.LEAF_EXPIRED: "mesh",
    Reason.PLUGIN_RESTRICTED: "mesh",
    Reason.PLUGIN_ERROR: "mesh",
    Reason.ERROR: "doors",
}
"""Reasons that the engine never gives, and who does."""


def called(uri: str) -> Decision:
    return judge(policy(intention("*")), uri, facts(), Normalization())


def without(
    module: object, engine: str, asked: Callable[[], Decision], instead: object = None
) -> Decision:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, engine, instead)
        matchers.regex_flaw.cache_clear()
        found = asked()
    matchers.regex_flaw.cache_clear()
    return found


def rule(**http: object) -> Decision:
    return ask(policy(intention(Permissions=[permission(**http)])))


REACHED: dict[Reason, Callable[[], Decision]] = {
    Reason.INTENTION_ALLOW: lambda: ask(policy(intention())),
    Reason.PERMISSION_ALLOW: lambda: rule(PathPrefix="/"),
    Reason.DEFAULT_ALLOW: lambda: ask(policy(default_allow=True)),
    Reason.INTENTION_DENY: lambda: ask(policy(intention(Action="deny"))),
    Reason.PERMISSION_DENY: lambda: ask(policy(intention(Permissions=[permission("deny")]))),
    Reason.DEFAULT_DENY: lambda: ask(policy()),
    Reason.PERMISSIONS_ON_CONNECTION: lambda: policy(
        intention(Permissions=[permission()])
    ).decide_connection(source()),
    Reason.READINGS_DIFFER: lambda: ask(
        policy(intention(Permissions=[permission(PathPrefix="/v1")])), "/v1/..%2fadmin"
    ),
    Reason.NO_PEER: lambda: policy().decide(None, facts()),
    Reason.PEER_UNREADABLE: lambda: called("https://web"),
    Reason.PEER_NOT_SERVICE: lambda: called(f"spiffe://{TD}/gateway/mesh/dc/dc1"),
    Reason.FOREIGN_TRUST_DOMAIN: lambda: called("spiffe://x.consul/ns/default/dc/dc1/svc/api"),
    Reason.JWT_MISSING: lambda: ask(tokens.judge()),
    Reason.JWT_INVALID: lambda: tokens.show("x.y.z"),
    Reason.JWT_CLAIMS: lambda: tokens.show(
        tokens.VAULT.token("role-user"), demand=tokens.demand((["role"], "admin"))
    ),
    Reason.JWT_NO_KEYS: lambda: ask(tokens.judge(providers=(tokens.provider(keys=None),))),
    Reason.JWT_NO_ENGINE: lambda: without(jws, "engine", lambda: ask(tokens.judge()), lambda: None),
    Reason.JWT_UNKNOWN_PROVIDER: lambda: ask(tokens.judge(providers=())),
    Reason.UNREADABLE_SOURCE: lambda: ask(policy(intention("a*"))),
    Reason.UNREADABLE_PERMISSION: lambda: rule(Methods="GET"),
    Reason.UNKNOWN_FIELD: lambda: rule(New=1),
    Reason.UNKNOWN_ACTION: lambda: ask(policy(intention(Action="ask"))),
    Reason.EMPTY_CRITERIA: lambda: rule(Header=[{"Name": "x-a"}]),
    Reason.CONFLICTING_CRITERIA: lambda: rule(PathExact="/", PathPrefix="/"),
    Reason.BAD_PATTERN: lambda: rule(PathRegex="("),
    Reason.PATTERN_TOO_LARGE: lambda: rule(PathRegex="a{1000}b{1000}" * 60),
    Reason.NO_REGEX_ENGINE: lambda: without(
        matchers, "engine", lambda: rule(PathRegex="/x"), lambda: None
    ),
    Reason.UNSOUND_METHOD: lambda: ask(policy(intention(Permissions=[permission()])), method="get"),
    Reason.UNSOUND_TARGET: lambda: ask(policy(intention(Permissions=[permission()])), "/#"),
    Reason.UNSOUND_HEADER: lambda: ask(
        policy(intention(Permissions=[permission(**header("x-a", Present=True))])),
        headers=[(b"x-a", b"\x00")],
    ),
    Reason.DEFAULT_UNKNOWN: lambda: ask(policy(default_allow=None)),
}


@pytest.mark.parametrize("reason", REACHED)
def test_the_reason_is_reached(reason: Reason) -> None:
    """A request, or a policy, for which this is the reason; its status and verdict agree."""
    verdict = REACHED[reason]()
    assert verdict.reason is reason
    assert verdict.status == ABOUT[reason].status
    assert verdict.allowed is reason.allows


def test_a_line_that_is_no_case_has_its_reason() -> None:
    """The batch answers every line."""
    answer = Batch("strict", clock=lambda: 0.0).answer('{"id": "a", "x')
    assert answer == {
        "id": "a", "allowed": False, "reason": "unreadable_case", "intention": None,
        "permission": None, "readings": [],
    }  # fmt: skip
    json.dumps(answer)


def test_no_reason_is_left_over() -> None:
    """Every code of the closed list is reached here, or said to belong elsewhere."""
    assert {*REACHED, *ELSEWHERE, Reason.UNREADABLE_CASE} == set(Reason)
    assert not set(REACHED) & set(ELSEWHERE)
