"""Tokens: whose count, where they may stand, and every way in which one is not good."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from mesh_middleware.intentions import Decision, JwtProvider, Policy, Reason, jws
from mesh_middleware.intentions.jwt import Location, read_keys
from tests.differential.tokens import ISSUERS, Vault

from .support import Json, ask, facts, intention, permission, policy, source

NOW = 1_700_000_000.0
VAULT = Vault(NOW)
OKTA = {"Providers": [{"Name": "okta"}]}


def provider(**fields: Any) -> JwtProvider:
    """The provider ``okta``: its keys are at hand, tokens are for ``web``."""
    given: Json = {"audiences": ("web",), "keys": read_keys(VAULT.jwks), **fields}
    return JwtProvider("okta", ISSUERS["okta"], **given)


def judge(
    demand: Json = OKTA,
    *,
    providers: tuple[JwtProvider, ...] | None = None,
    now: float = NOW,
    **options: Any,
) -> Policy:
    """A policy that allows ``api`` with a token."""
    given = (provider(),) if providers is None else providers
    return policy(intention(JWT=demand), jwt_providers=given, clock=lambda: now, **options)


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"Authorization", f"Bearer {token}".encode())]


def show(token: str, **options: Any) -> Decision:
    return ask(judge(**options), headers=bearer(token))


def test_a_good_token_passes_and_its_claims_are_handed_on() -> None:
    """The verified claims stand in the decision, under the provider's name."""
    verdict = show(VAULT.token("role-admin"))
    assert verdict.allowed
    assert verdict.claims is not None
    assert verdict.claims["okta"]["role"] == "admin"


@pytest.mark.parametrize(
    "name", ["sign-ec", "sign-ed", "sign-hs", "sign-hs512", "sign-rs512", "sign-ps256"]
)
def test_each_family_of_keys_verifies_its_own_algorithms(name: str) -> None:
    """RSA, elliptic curves, Edwards curves and shared secrets."""
    assert show(VAULT.token(name)).allowed


BAD = {
    "another key's signature": "sign-foreign",
    "alg none": "sign-none",
    "alg None": "sign-None",
    "the public key as a shared secret": "sign-hs-confused",
    "a key embedded in the header, none of ours named": "kid-other",
    "the id of another key": "kid-wrong",
    "a path for a key id": "kid-path",
    "a number for a key id": "kid-number",
    "crit": "critical",
    "crit of an unknown name": "critical-unknown",
    "an unencoded payload": "unencoded",
    "no expiry": "no-expiry",
    "expiry as text": "expiry-text",
    "expiry as true": "expiry-true",
    "expiry below zero": "expiry-negative",
    "expiry at zero": "expiry-zero",
    "expiry beyond numbers": "expiry-huge",
    "expired": "expired-45",
    "not begun": "begins-in-45",
    "begins at a text": "begins-text",
    "begins below zero": "begins-negative",
    "another issuer": "other-issuer",
    "the issuer in another case": "issuer-case",
    "a list of issuers": "issuer-list",
    "no issuer": "no-issuer",
    "another audience": "audience-other",
    "no audience": "no-audience",
    "an empty audience": "audience-empty",
    "an audience that is almost it": "audience-slash",
    "an audience with a scheme": "audience-https",
    "a mixed audience": "audience-mixed",
    "a number for a subject": "subject-number",
    "half a surrogate pair": "subject-half",
    "two parts": "two-parts",
    "four parts": "four-parts",
    "five parts": "five-parts",
    "no signature": "no-signature",
    "padding": "padded",
    "padding inside": "loose-payload",
    "stray bits at the end": "loose-bits",
    "a changed signature": "flipped",
    "a cut signature": "truncated",
    "another alphabet": "plus",
    "a dot before": "dotted",
    "a word": "word",
    "a list for claims": "payload-list",
    "a text for claims": "payload-text",
    "no claims": "payload-empty",
    "a claim that stands twice": "payload-twice",
    "claims that are no UTF-8": "payload-utf8",
    "claims in UTF-16": "payload-utf16",
    "claims too deep": "claims-deep-40",
    "claims far too deep": "payload-deep",
    "no number for an expiry": "payload-nan",
    "control bytes in claims": "payload-control",
    "a comment behind claims": "payload-comment",
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_token_that_is_not_good_is_refused(what: str) -> None:
    """Malformed, forged, out of time, or for someone else: `jwt_invalid`, and no claims."""
    verdict = show(VAULT.token(BAD[what]))
    assert (verdict.allowed, verdict.reason, verdict.claims) == (False, Reason.JWT_INVALID, None)


@pytest.mark.parametrize("name", ["embedded-jwk", "embedded-jku"])
def test_keys_and_addresses_inside_a_token_are_ignored(name: str) -> None:
    """A header that brings its own key changes nothing: ours verify, or none does."""
    assert show(VAULT.token(name)).allowed
    header = json.dumps({"alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}}).encode()
    claims = {"iss": ISSUERS["okta"], "aud": "web", "exp": NOW + 60}
    forged = jwt.encode(claims, b"\0" * 32, "HS256", json.loads(header))
    assert show(forged).reason is Reason.JWT_INVALID


def test_an_algorithm_counts_only_with_the_key_it_is_made_for() -> None:
    """A key that names its algorithm verifies no other, not even of its family."""
    keys = json.loads(VAULT.jwks)
    for key in keys["keys"]:
        if key["kid"] == "rsa":
            key["alg"] = "RS512"
    bound = provider(keys=read_keys(json.dumps(keys)))
    assert show(VAULT.token("sign-rs512"), providers=(bound,)).allowed
    for name in ("role-user", "sign-ps256"):
        assert show(VAULT.token(name), providers=(bound,)).reason is Reason.JWT_INVALID


@pytest.mark.parametrize("change", [{"use": "enc"}, {"kty": "x"}, {"n": "!"}, {"alg": "HS256"}])
def test_keys_that_cannot_verify_are_left_out(change: Json) -> None:
    """Keys for encryption, of unknown kinds, broken or of another algorithm verify nothing."""
    keys = {"keys": [{**key, **change} for key in json.loads(VAULT.jwks)["keys"] if "n" in key]}
    assert read_keys(json.dumps(keys)).keys == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": {}}', "{"])
def test_what_is_no_jwks_is_an_error(text: str) -> None:
    """The keys in use stay when the next answer cannot be read."""
    with pytest.raises(ValueError):
        read_keys(text)


@pytest.mark.parametrize(("now", "good"), [(29, True), (30, True), (31, False), (-3600, True)])
def test_clocks_may_differ_by_thirty_seconds(now: float, good: bool) -> None:
    """Expiry is judged with a skew of 30 s, no more."""
    expires = NOW + 3600
    assert show(VAULT.token("role-user"), now=expires + now).allowed is good
    assert jws.SKEW <= 30


@pytest.mark.parametrize(("skew", "late", "good"), [(5, 5, True), (5, 6, False), (90, 31, False)])
def test_a_provider_may_grant_less_skew_and_no_more(skew: float, late: float, good: bool) -> None:
    """``ClockSkewSeconds`` narrows the thirty seconds, and never widens them."""
    strict = (provider(skew=skew),)
    verdict = show(VAULT.token("role-user"), now=NOW + 3600 + late, providers=strict)
    assert verdict.allowed is good


@pytest.mark.parametrize(("late", "good"), [(-31, False), (-30, True), (0, True)])
def test_tokens_that_begin_later_wait(late: float, good: bool) -> None:
    """``nbf`` is judged with the same skew."""
    assert show(VAULT.token("begins-in-10"), now=NOW + 10 + late).allowed is good


LOCATIONS = (
    Location("header", "X-Token", "Token "),
    Location("header", "x-plain"),
    Location("query", "tok"),
    Location("cookie", "session"),
)
PLACES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "header": ("/", [("x-token", "Token {}")]),
    "header without a prefix": ("/", [("X-PLAIN", "{}")]),
    "query": ("/?a=b&tok={}", []),
    "cookie": ("/", [("Cookie", "a=b; session={}; c=d")]),
    "quoted cookie": ("/", [("Cookie", 'session="{}"')]),
}


def placed(place: str, token: str) -> tuple[str, list[tuple[bytes, bytes]]]:
    target, headers = PLACES[place]
    pairs = [(name.encode(), value.format(token).encode()) for name, value in headers]
    return target.format(token), pairs


@pytest.mark.parametrize("place", PLACES)
def test_tokens_are_found_where_the_provider_says(place: str) -> None:
    """Header with and without a prefix, query parameter, cookie; and nowhere else."""
    where = judge(providers=(provider(locations=LOCATIONS),))
    target, headers = placed(place, VAULT.token("role-user"))
    assert ask(where, target, headers).allowed
    assert ask(judge(), target, headers).reason is Reason.JWT_MISSING
    target, headers = placed(place, VAULT.token("sign-foreign"))
    assert ask(where, target, headers).reason is Reason.JWT_INVALID


def test_by_default_tokens_stand_in_authorization_or_access_token() -> None:
    """A provider that names no place means these two."""
    token = VAULT.token("role-user")
    assert ask(judge(), headers=bearer(token)).allowed
    assert ask(judge(), f"/?access_token={token}").allowed
    assert ask(judge()).reason is Reason.JWT_MISSING


@pytest.mark.parametrize(
    "value",
    ["{}", "bearer {}", "Basic x, Bearer {}", "Bearer {}, x", "Bearer {0} {0}", "Bearer  {}"],
)
def test_a_token_stands_in_one_way_only(value: str) -> None:
    """What some reader finds and another does not is no token."""
    headers = [(b"Authorization", value.format(VAULT.token("role-user")).encode())]
    assert not ask(judge(), headers=headers).allowed


def test_every_token_in_a_request_has_to_be_good() -> None:
    """A bad one beside a good one could be the one the application reads."""
    good, bad = VAULT.token("role-user"), VAULT.token("expired-90")
    for first, second in ((good, bad), (bad, good)):
        assert not ask(judge(), f"/?access_token={second}", bearer(first)).allowed
        assert not ask(judge(), f"/?access_token={first}&access_token={second}").allowed
    assert ask(judge(), f"/?access_token={good}", bearer(good)).allowed


def test_a_token_in_a_header_that_connection_names_does_not_count() -> None:
    """Proxies drop that header: nothing is left to satisfy the demand."""
    headers = [*bearer(VAULT.token("role-user")), (b"Connection", b"authorization")]
    assert not ask(judge(), headers=headers).allowed


def demand(*claims: tuple[list[str], str]) -> Json:
    verified = [{"Path": path, "Value": value} for path, value in claims]
    return {"Providers": [{"Name": "okta", "VerifyClaims": verified}]}


@pytest.mark.parametrize(
    ("token", "claims", "good"),
    [
        ("role-admin", [(["role"], "admin")], True),
        ("role-admin", [(["role"], "admin"), (["iss"], ISSUERS["okta"])], True),
        ("role-admin", [(["role"], "admin"), (["perms"], "x")], False),
        ("role-user", [(["role"], "admin")], False),
        ("role-nested", [(["perms", "role"], "admin")], True),
        ("role-nested", [(["perms"], "admin")], False),
        ("role-list", [(["role"], "admin")], False),
        ("role-number", [(["number"], "1")], False),
        ("role-number", [(["flag"], "true")], False),
    ],
)
def test_claims_are_compared_as_texts(
    token: str, claims: list[tuple[list[str], str]], good: bool
) -> None:
    """All claims of a demand hold, nested ones too; lists, numbers and flags equal no text."""
    verdict = show(VAULT.token(token), demand=demand(*claims))
    assert verdict.allowed is good
    assert good or verdict.reason is Reason.JWT_CLAIMS


def test_any_of_several_providers_satisfies() -> None:
    """Providers of one demand are alternatives."""
    other = JwtProvider("auth0", ISSUERS["auth0"], keys=read_keys(VAULT.jwks))
    both = {"Providers": [{"Name": "okta"}, {"Name": "auth0"}]}
    for name in ("role-user", "auth0"):
        assert show(VAULT.token(name), demand=both, providers=(provider(), other)).allowed


def test_a_token_never_replaces_identity() -> None:
    """The right token in the wrong hands is denied; so is the right service without it."""
    headers = bearer(VAULT.token("role-user"))
    assert ask(judge(), headers=headers, caller=source("other")).reason is Reason.DEFAULT_DENY
    assert ask(judge(), caller=source()).reason is Reason.JWT_MISSING
    assert judge().decide(None, facts("/", headers)).reason is Reason.NO_PEER


def test_an_unmet_demand_falls_through_to_nothing() -> None:
    """Not to a later permission, not to a lower intention."""
    needs = {**permission(PathPrefix="/v1"), "JWT": OKTA}
    rules = [intention(Permissions=[needs, permission()]), intention("*")]
    judged = policy(*rules, jwt_providers=[provider()], clock=lambda: NOW)
    assert ask(judged, "/v1").reason is Reason.JWT_MISSING
    assert ask(judged, "/v2").allowed
    verdict = ask(judged, "/v1", bearer(VAULT.token("role-user")))
    assert (verdict.allowed, verdict.permission) == (True, 0)


def test_a_demand_is_enforced_under_a_default_of_allow() -> None:
    """Envoy would not; `strict` does, and says so."""
    verdict = ask(judge(default_allow=True))
    assert (verdict.allowed, verdict.readings) == (False, ("jwt",))
    assert show(VAULT.token("role-user"), default_allow=True).allowed
    assert ask(judge(default_allow=True, reading="envoy")).allowed


def test_a_demand_is_enforced_on_a_service_that_consul_takes_for_tcp() -> None:
    """Consul has it ignored there; `strict` does not, where there is a request to ask it of."""
    verdict = ask(judge(protocol="tcp"))
    assert (verdict.reason, verdict.readings) == (Reason.JWT_MISSING, ("jwt",))
    assert show(VAULT.token("role-user"), protocol="tcp").allowed
    assert judge(protocol="tcp").may_connect(source())
    assert judge(protocol="tcp").decide_connection(source()).allowed
    assert ask(judge(protocol="tcp", reading="envoy")).allowed
    assert ask(judge(protocol="tcp", reading="envoy", default_allow=True)).allowed


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("reading", ["strict", "envoy"])
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_what_cannot_be_judged_is_denied(default: bool, reading: str, action: str) -> None:
    """
    An unknown provider, or one whose keys have not been read, denies in every reading.

    Only where Envoy gets no rule at all, for it would say what the default says, `envoy` allows.
    """
    for providers, reason in (
        ((), Reason.JWT_UNKNOWN_PROVIDER),
        ((provider(keys=None),), Reason.JWT_NO_KEYS),
    ):
        rules = [intention(JWT=OKTA, Action=action)]
        judged = policy(*rules, jwt_providers=providers, default_allow=default, reading=reading)
        verdict = ask(judged, headers=bearer(VAULT.token("role-user")))
        no_rule = reading == "envoy" and (action == "allow") is default
        assert verdict.allowed is (no_rule and default)
        if action == "allow" and not default:
            assert verdict.reason is reason


def test_without_the_engine_a_demand_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra ``jwt`` no token is good."""
    monkeypatch.setattr(jws, "engine", lambda: None)
    assert show(VAULT.token("role-user")).reason is Reason.JWT_NO_ENGINE


def test_new_keys_replace_old_ones_with_the_policy() -> None:
    """After a rollover tokens of the new key pass, and tokens of a dropped one do not."""
    other = Vault(NOW + 1)
    fresh = judge(providers=(provider(keys=read_keys(other.jwks)),))
    assert ask(fresh, headers=bearer(other.token("role-user"))).allowed
    assert not ask(fresh, headers=bearer(VAULT.token("role-user"))).allowed
    merged = {"keys": [*json.loads(VAULT.jwks)["keys"], *json.loads(other.jwks)["keys"]]}
    both = judge(providers=(provider(keys=read_keys(json.dumps(merged))),))
    for vault in (VAULT, other):
        assert ask(both, headers=bearer(vault.token("role-user"))).allowed


def test_a_verdict_on_a_token_is_not_remembered() -> None:
    """A token that expires is refused by the same policy that took it."""
    clock = [NOW]
    judged = policy(intention(JWT=OKTA), jwt_providers=[provider()], clock=lambda: clock[0])
    headers = bearer(VAULT.token("role-user"))
    assert ask(judged, headers=headers).allowed
    clock[0] = NOW + 4000
    assert ask(judged, headers=headers).reason is Reason.JWT_INVALID
    assert ask(judged).reason is Reason.JWT_MISSING


def test_a_secret_is_no_part_of_any_text() -> None:
    """Keys stay out of the representation of providers, key sets and keys."""
    shown = repr(provider()) + repr(read_keys(VAULT.jwks)) + repr(read_keys(VAULT.jwks).keys)
    for key in json.loads(VAULT.jwks)["keys"]:
        assert key.get("k", key.get("n", key.get("x"))) not in shown


def test_a_weak_key_of_a_stranger_verifies_nothing() -> None:
    """A token of any other RSA key is refused, also with the right key id."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    claims = {"iss": ISSUERS["okta"], "aud": "web", "exp": NOW + 60}
    assert show(jwt.encode(claims, key, "RS256", {"kid": "rsa"})).reason is Reason.JWT_INVALID
