"""The engine against the real Envoy: the same policies, the same raw requests, over mutual TLS."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from mesh_middleware.intentions import headers, paths, policy, program, wire

from . import cases, compare, envoy, tokens, written
from .words import TRUST_DOMAIN, Json

SEED = 20_261_122
POLICIES = 110
REQUESTS = 25

READINGS = {*headers.WORDS, *paths.WORDS, *policy.WORDS, *program.WORDS, *wire.WORDS}


@dataclass
class Judged:
    """The corpus, what Envoy said, and what we say in both readings."""

    cases: list[Json]
    envoy: list[bool]
    exact: list[Json]
    strict: list[Json]
    asgi: list[bool]


@pytest.fixture(scope="module")
def judged() -> Judged:
    now = time.time()
    vault = tokens.Vault(now)
    drawn = [*written.cases(), *cases.cases(SEED, POLICIES, REQUESTS)]
    corpus = [vault.fill(case) for case in drawn]
    verdicts = compare.ask_envoy(corpus, vault)
    exact, strict = (compare.ask_us(corpus, name, vault, now) for name in ("envoy", "strict"))
    asgi = compare.ask_asgi(corpus, vault, now)
    return Judged(corpus, verdicts, exact, strict, asgi)


def test_the_corpus_is_large_and_even(judged: Judged) -> None:
    """At least 2,000 cases, of which both verdicts, both defaults and both layers have a share."""
    assert len(judged.cases) >= 2000
    assert 0.2 < sum(judged.envoy) / len(judged.envoy) < 0.8
    for key, values in {"default_allow": (True, False), "protocol": ("http", "tcp")}.items():
        for value in values:
            assert sum(case[key] == value for case in judged.cases) > 200
    assert sum("JWT" in str(case["intentions"]) for case in judged.cases) > 300
    assert sum(bool(case["normalization"]) for case in judged.cases) > 300


def test_the_corpus_is_the_same_each_time() -> None:
    """Equal seeds, equal cases."""
    assert list(cases.cases(SEED, 20, 5)) == list(cases.cases(SEED, 20, 5))
    assert list(cases.cases(SEED, 20, 5)) != list(cases.cases(SEED + 1, 20, 5))


def test_the_envoy_reading_equals_envoy(judged: Judged) -> None:
    """In the ``envoy`` reading every verdict is Envoy's, without exception."""
    assert compare.differences(judged.cases, judged.envoy, judged.exact) == []


def test_strict_is_never_looser_and_tells_why_it_is_stricter(judged: Judged) -> None:
    """``strict`` allows nothing that Envoy refuses; what it alone refuses names a reading."""
    assert compare.looser(judged.cases, judged.envoy, judged.strict) == []
    for answer in judged.strict:
        assert {word for name in answer["readings"] for word in name.split("+")} <= READINGS


def test_a_request_in_an_asgi_scope_is_never_judged_looser(judged: Judged) -> None:
    """What the door of ASGI lets through, as Hypercorn hands it over, Envoy lets through."""
    pairs = zip(judged.cases, judged.envoy, judged.asgi, strict=True)
    assert [case for case, envoy, asgi in pairs if asgi and not envoy] == []
    assert sum(judged.asgi) > sum(answer["allowed"] for answer in judged.strict) * 0.8


def test_strict_is_of_use(judged: Judged) -> None:
    """``strict`` is no wall: it allows most of what Envoy allows, even of this odd lot."""
    allowed = sum(answer["allowed"] for answer in judged.strict)
    assert allowed > sum(judged.envoy) * 0.6


BAD_PATTERNS = ["(", "a(?=b)", "(a)\\1", "[", "a**", "\\Z", "(?P<n", "x{1001}"]


@pytest.mark.parametrize("pattern", BAD_PATTERNS)
def test_where_envoy_refuses_the_configuration_everyone_is_denied(pattern: str) -> None:
    """A pattern for which Envoy would not start denies every source, in both readings."""
    places = [
        [written.permission("allow", PathRegex=pattern)],
        [written.permission("allow", **written.header("x-a", Regex=pattern))],
        [written.permission("deny", PathRegex=pattern), written.permission()],
    ]
    vault = tokens.Vault(0)
    for rules in places:
        case = written.case("bad", [written.intention("web", Permissions=rules)])
        assert envoy.complaint({"p": compare.filters(case, vault)})
        for reading in ("envoy", "strict"):
            [answer] = compare.ask_us([case], reading, vault, 0)
            assert (answer["allowed"], answer["reason"]) == (False, "bad_pattern")


@pytest.mark.parametrize("end", ["\n", "\r", "\0"])
def test_a_header_name_that_envoy_refuses_denies_everyone(end: str) -> None:
    """Also where it would let the caller in: absent is what such a header always is."""
    absent = written.permission(**written.header(f"x{end}role", Present=True, Invert=True))
    late = [written.permission(PathExact="/v1"), {**absent, "Action": "deny"}]
    vault = tokens.Vault(0)
    for rules, refused in (([absent], True), (late, False)):
        for caller in ("api", "web"):
            given = [written.intention(Permissions=rules), written.intention("web")]
            case = written.case("bad", given, "/v1", source=written.service(caller))
            assert bool(envoy.complaint({"p": compare.filters(case, vault)})) is refused
            exact, strict = (
                compare.ask_us([case], name, vault, 0)[0] for name in ("envoy", "strict")
            )
            assert exact["allowed"] is not refused
            assert strict["allowed"] is (not refused and caller == "web")


@pytest.mark.parametrize("name", ["api(", "a[b", "a)b"])
def test_a_source_that_is_no_pattern_denies_everyone(name: str) -> None:
    """A source's name goes into Envoy's pattern as it is: when that is bad, all are denied."""
    case = written.case("bad", [written.intention(name), written.intention()])
    vault = tokens.Vault(0)
    assert case["trust_domain"] == TRUST_DOMAIN
    assert envoy.complaint({"p": compare.filters(case, vault)})
    for reading in ("envoy", "strict"):
        [answer] = compare.ask_us([case], reading, vault, 0)
        assert (answer["allowed"], answer["reason"]) == (False, "bad_pattern")
