"""
One signed token: what it is made of, and whether a provider's keys and terms are met by it.

Owns decoding and verification. Two judgements are made: ours, and the more *lenient* one of Envoy
(no expiry needed, 60 seconds of clock skew, ``crit`` ignored, audiences with or without a scheme
and a final slash). An algorithm counts only with the kind of key it is made for; keys and key
addresses inside a token are ignored. Knows nothing of requests.

Source: RFC 7515, 7517, 7519; Envoy 1.40's jwt_authn filter, observed.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

SKEW = 30.0
"""Seconds a clock may be off at most; a provider may say less."""

LENIENT_SKEW = 60.0
"""Seconds Envoy grants, whatever the provider entry says."""

MAX_TOKEN = 16_384
"""Longest token, in bytes, that is looked at."""

MAX_DEPTH = 32
"""Deepest nesting of a token's claims; Envoy's JSON reader ends at 100."""

LENIENT_DEPTH = 99

Claims = Mapping[str, Any]

_FAMILIES: dict[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "oct": ("HS256", "HS384", "HS512"),
    "OKP": ("EdDSA",),
}
_CURVES = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",)}
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_PART = re.compile(r"[A-Za-z0-9_-]+")
_TEXTS = ("iss", "sub", "jti")
_TIMES = ("iat", "nbf", "exp")


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


@cache
def engine() -> Any:
    """
    Import PyJWT, once a policy or a key needs it: to most services it would be memory for nothing.

    Returns:
        Its module; ``None`` when the extra ``jwt`` is not installed.
    """
    try:
        import jwt
    except ImportError:  # pragma: no cover - the extra is installed where tests run
        return None
    return jwt


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
    pyjwt = engine()
    if pyjwt is None or not isinstance(item, dict) or item.get("use", "sig") != "sig":
        return None
    kind, named, curve = item.get("kty"), item.get("alg"), item.get("crv")
    family = _CURVES.get(str(curve)) if kind == "EC" else _FAMILIES.get(str(kind))
    if family is None or (named is not None and named not in family):
        return None
    algorithms = family if named is None else (str(named),)
    try:
        material = pyjwt.PyJWK(item, algorithm=algorithms[0]).key
    except (pyjwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    kid = item.get("kid")
    return Key(kid if isinstance(kid, str) else None, algorithms, material)


class BadTokenError(Exception):
    """A token is not good; a refusal, not an error."""


@dataclass(frozen=True, slots=True)
class Terms:
    """
    What a token has to meet besides a good signature.

    Args:
        issuer: its issuer, exactly.
        audiences: of which it has to name one; empty when it need not.
        now: seconds since the epoch.
        lenient: whether it is judged as Envoy does, not as we do.
        skew: seconds a clock may be off; *lenient* has its own.
    """

    issuer: str
    audiences: tuple[str, ...]
    now: float
    lenient: bool
    skew: float = SKEW


def verify(text: str, terms: Terms, keys: KeySet) -> Claims:
    """
    Verify one token.

    Returns:
        Its claims.

    Raises:
        BadTokenError: it is malformed, not for these *terms*, or signed by none of *keys*.
    """
    parts = _split(text, terms.lenient)
    header, claims = (_read_json(part, terms.lenient) for part in parts[:2])
    if "crit" in header and not terms.lenient:
        raise BadTokenError
    _check_types(claims)
    if claims.get("iss") != terms.issuer:
        raise BadTokenError
    _check_time(claims, terms)
    _check_audience(claims, terms)
    _check_signature(parts, header, keys)
    return claims


def _split(text: str, lenient: bool) -> list[str]:
    if lenient:
        parts = [part for part in text.split(".") if part]
        if len(parts) != 3 or not all(map(_PART.fullmatch, parts)):
            raise BadTokenError
        return parts
    if len(text) > MAX_TOKEN or not _TOKEN.fullmatch(text):
        raise BadTokenError
    parts = text.split(".")
    # One token has one spelling: no stray bits in the last character of a part.
    if any(_encode(_decode(part)) != part for part in parts):
        raise BadTokenError
    return parts


def _decode(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        raise BadTokenError from None


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _read_json(part: str, lenient: bool) -> dict[str, Any]:
    try:
        value = json.loads(
            _decode(part).decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            strict=not lenient,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # no half of a surrogate pair
    except (ValueError, RecursionError):
        raise BadTokenError from None
    if not isinstance(value, dict) or not _shallow(value, LENIENT_DEPTH if lenient else MAX_DEPTH):
        raise BadTokenError
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse names that stand twice: readers differ in which one counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _shallow(value: object, depth: int) -> bool:
    level: list[object] = [value]
    for _ in range(depth):
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return True
    return False


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _check_types(claims: Claims) -> None:
    """Refuse registered claims of another type than RFC 7519 gives them, as Envoy does."""
    if not all(isinstance(claims.get(name, ""), str) for name in _TEXTS):
        raise BadTokenError
    for name in _TIMES:
        moment = claims.get(name, 0)
        if type(moment) not in (int, float) or not 0 <= moment < 1 << 64:
            raise BadTokenError
    audience = claims.get("aud", "")
    listed = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(item, str) for item in listed):
        raise BadTokenError


def _check_time(claims: Claims, terms: Terms) -> None:
    skew = LENIENT_SKEW if terms.lenient else min(terms.skew, SKEW)
    expires = claims.get("exp")
    if terms.lenient:
        expires = int(expires or 0) or terms.now
    if expires is None or not claims.get("nbf", 0) - skew <= terms.now <= expires + skew:
        raise BadTokenError


def _check_audience(claims: Claims, terms: Terms) -> None:
    audience = claims.get("aud", ())
    named = [audience] if isinstance(audience, str) else audience
    wanted = terms.audiences
    if terms.lenient:
        named, wanted = map(_plain_audience, named), tuple(map(_plain_audience, wanted))
    if wanted and not set(wanted).intersection(named):
        raise BadTokenError


def _plain_audience(text: str) -> str:
    for scheme in ("http://", "https://"):
        if text.startswith(scheme):
            text = text.removeprefix(scheme)
            break
    return text.removesuffix("/")


def _check_signature(parts: list[str], header: Mapping[str, Any], keys: KeySet) -> None:
    algorithm, kid = header.get("alg"), header.get("kid", "")
    if not isinstance(algorithm, str) or not isinstance(kid, str):
        raise BadTokenError
    message, signature = f"{parts[0]}.{parts[1]}".encode(), _decode(parts[2])
    for key in keys.keys:
        if algorithm not in key.algorithms or (kid and key.kid and kid != key.kid):
            continue
        try:
            if _algorithms()[algorithm].verify(message, key.material, signature):
                return
        except (engine().PyJWTError, ValueError, TypeError):
            continue
    raise BadTokenError


@cache
def _algorithms() -> Mapping[str, Any]:
    found: Mapping[str, Any] = engine().algorithms.get_default_algorithms()
    return found
