"""What holds for every request and every policy, whatever they are."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh_middleware.cli.batch import Batch
from mesh_middleware.identity import ServiceId
from mesh_middleware.intentions import (
    AsgiFacts,
    Decision,
    HttpFacts,
    Policy,
    RequestFacts,
    WsgiFacts,
)
from tests.differential import cases, tokens

from .support import TD, facts, header, intention, permission, policy, source

VAULT = tokens.Vault(1_000_000_000)
BYTES = st.binary(max_size=40)
SLASHED = st.sampled_from([b"/admin", b"/v1/x", b"/%61dmin", b"/..;/admin", b"//", b"/a;b"])
TARGETS = st.one_of(BYTES, st.builds(lambda a, b, c: a + b + c, SLASHED, BYTES, SLASHED))
NAMES = st.one_of(st.sampled_from([b"x-role", b"x_role", b"Host", b"connection", b"cookie"]), BYTES)
HEADERS = st.lists(st.tuples(NAMES, BYTES), max_size=5)

RULES = [
    permission("deny", PathPrefix="/admin"),
    permission("deny", **header("x-role", Exact="admin")),
    permission("deny", **header("cookie", Contains="admin")),
    permission("allow", PathRegex="/v1/.*", **header("x-role", Regex=".*")),
    permission("allow", PathPrefix="/"),
]


def judges() -> list[Policy]:
    return [
        policy(intention(Permissions=RULES), default_allow=default, reading=reading)
        for default in (True, False, None)
        for reading in ("strict", "envoy")
    ]


JUDGES = judges()


def sound(verdict: Decision) -> bool:
    return verdict.allowed is (verdict.status == 200) is verdict.reason.allows


@given(st.one_of(st.just(b"GET"), BYTES), TARGETS, HEADERS)
@example(b"GET", b"/\xed\xa0\x80", [])
def test_every_request_gets_a_verdict(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """No bytes in method, target or headers raise; verdict, reason and status agree."""
    for judge in JUDGES:
        assert sound(judge.decide(source(), HttpFacts(method, target, headers)))


@given(st.text(max_size=30), st.one_of(st.none(), BYTES), BYTES, HEADERS)
@example("/\ud800", None, b"", [])
@example("/\udcff", b"/\xff", b"#", [])
def test_every_asgi_scope_gets_a_verdict(
    path: str, raw_path: bytes | None, query: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """No text in an ASGI scope raises, half surrogate pairs included."""
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": raw_path,
        "query_string": query, "headers": headers,
    }  # fmt: skip
    for judge in JUDGES:
        assert sound(judge.decide(source(), AsgiFacts(scope)))


@given(st.text(max_size=30), st.text(max_size=20), st.dictionaries(st.text(max_size=8), st.text()))
def test_every_wsgi_environ_gets_a_verdict(path: str, query: str, extra: dict[str, str]) -> None:
    """No text in a WSGI environ raises."""
    environ = {f"HTTP_{name}": value for name, value in extra.items()}
    environ |= {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query}
    for judge in JUDGES:
        assert sound(judge.decide(source(), WsgiFacts(environ)))


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_strict_allows_nothing_that_the_envoy_reading_refuses(seed: int) -> None:
    """For random policies, tokens included, and random requests: strict is within envoy."""
    drawn = [VAULT.fill(case) for case in cases.cases(seed, 3, 15)]
    strict, envoy = (
        Batch(reading, providers=VAULT.providers(), clock=lambda: 1e9)
        for reading in ("strict", "envoy")
    )
    for case in drawn:
        answers = [batch.answer(_text(case)) for batch in (strict, envoy)]
        assert answers[0]["allowed"] <= answers[1]["allowed"], case
        if answers[1]["allowed"] > answers[0]["allowed"]:
            assert answers[0]["readings"], case


def _text(case: Any) -> str:
    return json.dumps(case)


@given(TARGETS.filter(lambda t: t[:1] == b"/"), HEADERS)
def test_asgi_and_the_wire_are_judged_alike(
    target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """
    A request in an ASGI scope is never judged looser than the same bytes on the wire, strictly.

    The scope is as Hypercorn makes it: names in lower case, the path decoded, the raw one beside.
    """
    raw, _, query = target.partition(b"?")
    wire = HttpFacts(b"GET", target, headers)
    scope = {
        "method": "GET", "path": wire.path.decode("utf-8", "replace"), "raw_path": raw,
        "query_string": query, "headers": [(n.lower(), v) for n, v in headers],
    }  # fmt: skip
    for judge in JUDGES[::2]:
        if judge.decide(source(), AsgiFacts(scope)).allowed:
            assert judge.decide(source(), wire).allowed


@given(st.lists(st.tuples(TARGETS, HEADERS), max_size=8))
def test_memory_changes_no_verdict(requests: list[tuple[bytes, list[tuple[bytes, bytes]]]]) -> None:
    """What was answered before does not matter: a fresh policy says the same."""
    for place, judge in enumerate(JUDGES):
        for target, headers in requests:
            asked = HttpFacts(b"GET", target, headers)
            assert judge.decide(source(), asked) == judges()[place].decide(source(), asked)


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_a_policy_made_from_the_last_one_says_the_same(seed: int) -> None:
    """What is taken over from the policy before changes no verdict, whatever that policy was."""
    rnd = random.Random(seed)
    pool = [permission(rnd.choice(("allow", "deny")), PathPrefix=p) for p in ("/", "/v1", "/a")]
    sets = [
        [intention(n, Permissions=rnd.sample(pool, 2)) for n in ("api", "web", "*")]
        for _ in range(2)
    ]
    old = policy(*sets[0], reading=rnd.choice(("strict", "envoy")))
    old.decide(source(), facts("/v1"))
    for default in (True, False):
        fresh = policy(*sets[1], default_allow=default)
        made = policy(*sets[1], default_allow=default, previous=old)
        for name in ("api", "web", "else"):
            for target in ("/", "/v1", "/a/b", "/%61"):
                asked = facts(target)
                assert made.decide(source(name), asked) == fresh.decide(source(name), asked)


@given(st.text(alphabet="abz-.*|()+?[]\\ ", max_size=6), st.text(alphabet="abz-.", max_size=6))
def test_odd_names_of_sources_get_a_verdict(rule: str, name: str) -> None:
    """Whatever a source is called in an intention, callers are judged, and strict is no looser."""
    item = intention(rule)
    for default in (True, False):
        strict, envoy = (
            policy(item, default_allow=default, reading=reading) for reading in ("strict", "envoy")
        )
        caller = ServiceId(TD, "default", "dc1", name)
        one, two = strict.decide(caller, facts()), envoy.decide(caller, facts())
        assert sound(one) and sound(two)
        assert one.allowed <= two.allowed


@given(TARGETS, st.one_of(st.just(b""), BYTES))
@example(b"/a%00", b"")
@example(b"/a?b", b"")
@example(b"/a%2500", b"x=%00")
def test_one_look_at_a_target_says_what_all_looks_do(raw: bytes, query: bytes) -> None:
    """The short way to tell that a target is sound never lets through what the long one refuses."""
    scope = {"path": "/", "raw_path": raw, "query_string": query}
    facts = AsgiFacts(scope)
    assert facts.sound is RequestFacts.sound.fget(facts)  # type: ignore[attr-defined]
