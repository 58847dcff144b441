"""
Tokens that intentions demand: where they stand in a request, and whether they are good.

Owns jwt-providers as values, the search for tokens, and their verification with keys that are at
hand. Fetches nothing: remote keys come in with the provider. A token never replaces the identity of
the peer; it is only asked for after that.

Two judgements are made of one token: ours, and Envoy's more *lenient* one (no expiry needed, 60
seconds of clock skew), which the ``envoy`` reading needs. An algorithm counts only with the kind of
key it is made for; keys and key addresses inside a token are ignored.

Source: RFC 7515, 7517, 7519; reference 5.3 and 8; Envoy's jwt_authn filter.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote_plus

from .facts import RequestFacts
from .model import JwtDemand
from .reasons import Reason

try:
    import jwt as pyjwt
except ImportError:  # pragma: no cover - the extra is installed where tests run
    pyjwt = None  # type: ignore[assignment]

SKEW = 30.0
"""Seconds a clock may be off."""

LENIENT_SKEW = 60.0
"""Seconds Envoy grants, whatever the provider entry says."""

MAX_TOKEN = 16_384
"""Longest token, in bytes, that is looked at."""

Claims = Mapping[str, Any]

_FAMILIES: dict[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "oct": ("HS256", "HS384", "HS512"),
    "OKP": ("EdDSA",),
}
_CURVES = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",)}
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_TOKEN_CHARS = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Location:
    """A place to look for a token; *prefix* is cut from the value of a header."""

    kind: Literal["header", "query", "cookie"]
    name: str
    prefix: str = ""


DEFAULT_LOCATIONS = (
    Location("header", "authorization", "Bearer "),
    Location("query", "access_token"),
)
"""Where tokens are looked for when the provider does not say."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a JWKS, and the algorithms it may verify."""

    kid: str | None
    algorithms: tuple[str, ...]
    material: Any = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class KeySet:
    """
    The keys of a JWKS that can verify signatures.

    Args:
        keys: usable keys, in order.
        text: the JWKS they were read from: equal text, equal keys.
    """

    keys: tuple[Key, ...] = field(compare=False, repr=False)
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class JwtProvider:
    """
    A ``jwt-provider`` entry.

    Args:
        name: what intentions call it.
        issuer: the only issuer whose tokens count.
        audiences: of which a token has to name one; empty when it need not.
        locations: where tokens are looked for.
        keys: the keys at hand; ``None`` when they have not been read, which denies.
        jwks_uri: where remote keys are read; empty for local ones.
        cache_seconds: how long remote keys are used without asking again.
        timeout: seconds one question for remote keys may take.
        forward_header: header that hands the verified payload to the application; may be empty.
        forward_padded: whether that payload keeps its ``=`` padding.
    """

    name: str
    issuer: str
    audiences: tuple[str, ...] = ()
    locations: tuple[Location, ...] = DEFAULT_LOCATIONS
    keys: KeySet | None = None
    jwks_uri: str = ""
    cache_seconds: float = 300.0
    timeout: float = 1.0
    forward_header: str = ""
    forward_padded: bool = False


class _BadTokenError(Exception):
    """A token is not good; a refusal, not an error."""


def read_keys(text: str) -> KeySet:
    """
    Read a JWKS.

    Args:
        text: its JSON.

    Returns:
        The keys that can verify signatures; others are left out.

    Raises:
        ValueError: *text* is no JWKS.

    Source: RFC 7517, 5: keys that are not understood are ignored.
    """
    value = json.loads(text)
    if not isinstance(value, dict) or not isinstance(value.get("keys"), list):
        raise ValueError("a JWKS is an object with a list of keys")
    return KeySet(tuple(filter(None, map(_read_key, value["keys"]))), text)


def _read_key(item: object) -> Key | None:
    if pyjwt is None or not isinstance(item, dict) or item.get("use", "sig") != "sig":
        return None
    kind, named = item.get("kty"), item.get("alg")
    family = _CURVES.get(item.get("crv", "")) if kind == "EC" else _FAMILIES.get(str(kind))
    if family is None or (named is not None and named not in family):
        return None
    algorithms = family if named is None else (str(named),)
    try:
        material = pyjwt.PyJWK(item, algorithm=algorithms[0]).key
    except (pyjwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    kid = item.get("kid")
    return Key(kid if isinstance(kid, str) else None, algorithms, material)


class Tokens:
    """
    The tokens of one request.

    Args:
        facts: the request.
        providers: jwt-providers by name.
        now: seconds since the epoch.
    """

    def __init__(
        self, facts: RequestFacts, providers: Mapping[str, JwtProvider], now: float
    ) -> None:
        self._facts = facts
        self._providers = providers
        self._now = now

    def satisfy(
        self, demands: Sequence[JwtDemand], *, lenient: bool = False
    ) -> Mapping[str, Claims] | Reason:
        """
        Look for a token that satisfies any of *demands*.

        Returns:
            Verified claims by provider; or why the first demand was not met.
        """
        unmet: Reason | None = None
        for demand in demands:
            found = self._satisfy(demand, lenient)
            if not isinstance(found, Reason):
                return {demand.provider: found}
            unmet = unmet or found
        assert unmet is not None
        return unmet

    def _satisfy(self, demand: JwtDemand, lenient: bool) -> Claims | Reason:
        provider = self._providers.get(demand.provider)
        if provider is None:
            return Reason.JWT_UNKNOWN_PROVIDER
        if pyjwt is None:
            return Reason.JWT_NO_ENGINE
        if provider.keys is None:
            return Reason.JWT_NO_KEYS
        tokens = list(_find(provider, self._facts, lenient))
        if not tokens:
            return Reason.JWT_MISSING
        try:
            found = [_verify(token, provider, self._now, lenient) for token in tokens]
        except _BadTokenError:
            return Reason.JWT_INVALID
        # Every token in the request has to be good; Envoy keeps the first one's payload.
        checked = found[:1] if lenient else found
        for claims in checked:
            if not all(_at(claims, claim.path) == claim.value for claim in demand.claims):
                return Reason.JWT_CLAIMS
        return found[0]


def _at(claims: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(claims, dict):
            return None
        claims = claims.get(key)
    return claims if isinstance(claims, str) else None


def _find(provider: JwtProvider, facts: RequestFacts, lenient: bool) -> Iterator[str]:
    order = {"header": 0, "query": 1, "cookie": 2}
    for location in sorted(provider.locations, key=lambda place: order[place.kind]):
        for value in _values(location, facts):
            if location.prefix:
                before, prefix, rest = value.partition(location.prefix)
                if not prefix or (before and not lenient):
                    continue
                token = _TOKEN_CHARS.search(rest)
                value = token[0] if token and lenient else rest
            yield value


def _values(location: Location, facts: RequestFacts) -> Iterator[str]:
    if location.kind == "query":
        yield from _parameters(facts.query.decode("latin-1"), location.name)
        return
    wanted = b"cookie" if location.kind == "cookie" else location.name.lower().encode()
    for name, value in facts.headers:
        if name.lower() != wanted:
            continue
        text = value.decode("latin-1").strip(" \t")
        if location.kind == "header":
            yield text
        else:
            yield from _cookies(text, location.name)


def _parameters(query: str, wanted: str) -> Iterator[str]:
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if unquote_plus(name) == wanted:
            yield unquote_plus(value)


def _cookies(text: str, wanted: str) -> Iterator[str]:
    for pair in text.split(";"):
        name, _, value = pair.strip(" \t").partition("=")
        if name == wanted:
            yield value.strip('"')


def _verify(token: str, provider: JwtProvider, now: float, lenient: bool) -> Claims:
    header, claims = _decode(token)
    if claims.get("iss") != provider.issuer or "crit" in header:
        raise _BadTokenError
    _check_time(claims, now, lenient)
    if provider.audiences:
        audience = claims.get("aud")
        named = [audience] if isinstance(audience, str) else audience
        if not isinstance(named, list) or not set(provider.audiences).intersection(
            item for item in named if isinstance(item, str)
        ):
            raise _BadTokenError
    _check_signature(token, header, provider)
    return claims


def _decode(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
        raise _BadTokenError
    header, payload, _ = token.split(".")
    try:
        parts = [json.loads(_unbase64(part)) for part in (header, payload)]
    except (ValueError, RecursionError):
        raise _BadTokenError from None
    if not all(isinstance(part, dict) for part in parts):
        raise _BadTokenError
    return parts[0], parts[1]


def _unbase64(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def _check_time(claims: Claims, now: float, lenient: bool) -> None:
    skew = LENIENT_SKEW if lenient else SKEW
    expires = claims.get("exp", now if lenient else None)
    begins = claims.get("nbf", 0)
    for moment in (expires, begins):
        if isinstance(moment, bool) or not isinstance(moment, int | float):
            raise _BadTokenError
    if not begins - skew <= now <= expires + skew:
        raise _BadTokenError


def _check_signature(token: str, header: Mapping[str, Any], provider: JwtProvider) -> None:
    algorithm, kid = header.get("alg"), header.get("kid")
    assert provider.keys is not None
    for key in provider.keys.keys:
        if algorithm not in key.algorithms or (kid and key.kid and kid != key.kid):
            continue
        try:
            pyjwt.PyJWS().decode(token, key.material, algorithms=[str(algorithm)])
        except pyjwt.PyJWTError:
            continue
        return
    raise _BadTokenError
