"""R20: whatever comes in, no exception escapes, and every decision is one."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.certificates import Peer, utc_now
from mesh_middleware.consul import wire
from mesh_middleware.consul.intentions import parse_match
from mesh_middleware.exceptions import AgentAnswerError, IdentityError
from mesh_middleware.identity import parse_spiffe_id
from mesh_middleware.intentions import Decision, HttpFacts, compile_policy
from mesh_middleware.resolve import parse_health

DOMAIN = "9361e7cf-537e-691c-5263-92d523793c73.consul"
PIECES = ["spiffe://", DOMAIN, "/ns/", "default", "/dc/", "dc1", "/svc/", "web", "%2f", "..", "/",
          "*", "\0", "é", "?", "#", "@", ":"]  # fmt: skip
KEYS = (
    "SourceName DestinationName Action Permissions HTTP PathExact PathPrefix PathRegex Methods"
    " Header Name Exact Invert Precedence SourceType JWT Providers tax SourcePeer Present Regex"
).split()
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    | st.sampled_from(["allow", "deny", "tax", "web", "*", "consul", "GET", "/x", "(", ""])
)  # fmt: skip
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=25,
)
SOUND = st.fixed_dictionaries(
    {"SourceName": st.sampled_from(["web", "*", "order"]), "DestinationName": st.just("tax"),
     "SourceType": st.just("consul"), "Precedence": st.just(9)},
    optional={"Action": st.sampled_from(["allow", "deny", "maybe"]), "Permissions": JSON},
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join))
def test_r20_spiffe_ids_are_read_or_refused(text: str) -> None:
    """An ID, which prints as what was read, or the one error of its kind."""
    try:
        found = parse_spiffe_id(text)
    except IdentityError:
        return
    assert parse_spiffe_id(found.uri) == found


def peer(name: str = "web") -> Peer:
    """A caller of the mesh."""
    uri = f"spiffe://{DOMAIN}/ns/default/dc/dc1/svc/{name}"
    return Peer(parse_spiffe_id(uri), "1", utc_now() + timedelta(hours=1))


def decide(body: Any, facts: HttpFacts) -> Decision | None:
    """The verdict of a policy made of an agent's answer; ``None`` when that is refused whole."""
    try:
        told = parse_match(body, "tax")
    except AgentAnswerError:
        return None
    policy = compile_policy(told, service="tax", trust_domain=DOMAIN, default_allow=False)
    return policy.decide(peer().id, facts)


@given(JSON | st.fixed_dictionaries({"tax": st.lists(SOUND | JSON, max_size=3)}))
def test_r20_any_answer_about_intentions_gives_a_decision_or_is_refused(body: Any) -> None:
    """Garbage, and garbage within what is sound: never an exception on a request."""
    found = decide(json.loads(json.dumps(body)), HttpFacts(b"GET", b"/x"))
    assert found is None or isinstance(found.allowed, bool)


@given(st.fixed_dictionaries({"tax": st.lists(SOUND, max_size=4)}), st.binary(max_size=40),
       st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=4),
       st.binary(max_size=8))  # fmt: skip
def test_r20_any_request_gets_a_decision(
    body: Any, path: bytes, headers: list[tuple[bytes, bytes]], method: bytes
) -> None:
    """Bytes of every kind in method, path and headers: a verdict with a reason, always."""
    found = decide(body, HttpFacts(method, path, headers=tuple(headers)))
    assert found is None or (isinstance(found.allowed, bool) and str(found.reason))


@given(JSON)
def test_r20_answers_of_the_agent_are_read_or_refused(body: Any) -> None:
    """Roots, leaf, instances, default policy: a value, or the one error for what the agent says."""
    for read in (
        wire.parse_roots,
        wire.parse_leaf,
        wire.parse_self_default,
        lambda b: wire.parse_probe(b, None),
        lambda b: parse_health(b, trust_domain=DOMAIN, service="web"),
    ):
        try:
            read(body)
        except AgentAnswerError:
            continue
