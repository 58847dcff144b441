"""
Tokens for the comparison with Envoy: providers, keys made for the run, good and bad tokens.

A case names a token as ``{name}``; `Vault.fill` puts the token there. So cases stay the same while
keys and times differ from run to run. Envoy's configuration is written here a second time, as
Consul 1.21 does: it shares no code with the engine.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mesh_middleware.intentions.jwt import JwtProvider, Location, read_keys

from . import rbac

Json = dict[str, Any]

ISSUERS = {
    "okta": "https://okta.test",
    "auth0": "https://auth0.test",
    "any": "https://okta.test",
    "keep": "https://okta.test",
}

PROVIDERS: dict[str, Json] = {
    "okta": {"Audiences": ["web", "api"]},
    "any": {},
    "keep": {
        "Audiences": ["https://web"],
        "Locations": [{"Header": {"Name": "Authorization", "Forward": True}}],
    },
    "auth0": {
        "Locations": [
            {"Header": {"Name": "X-Token", "ValuePrefix": "Token "}},
            {"Header": {"Name": "x-plain"}},
            {"QueryParam": {"Name": "tok"}},
            {"Cookie": {"Name": "session"}},
        ]
    },
}
"""Consul's jwt-provider entries, without issuer and keys."""

CLAIMS: list[tuple[list[str], str]] = [
    (["role"], "admin"),
    (["role"], "user"),
    (["perms", "role"], "admin"),
    (["perms"], "admin"),
    (["iss"], "https://okta.test"),
    (["missing"], "x"),
    (["number"], "1"),
    (["flag"], "true"),
    (["empty"], ""),
]

PLACES = [
    *[("Authorization", "Bearer TOKEN")] * 6,
    ("authorization", "Bearer  TOKEN"),
    ("Authorization", "bearer TOKEN"),
    ("Authorization", "TOKEN"),
    ("Authorization", "Basic x, Bearer TOKEN"),
    ("Authorization", "Bearer TOKEN, x"),
    ("Authorization", "Bearer TOKEN TOKEN"),
    ("Authorization", "Bearer"),
    ("Authorization", "BearerTOKEN"),
    *[("query", "access_token=TOKEN")] * 3,
    ("query", "access_token=x&access_token=TOKEN"),
    ("query", "access%5Ftoken=TOKEN"),
    ("query", "access_token=TOKEN;x"),
    ("query", "Access_Token=TOKEN"),
    *[("X-Token", "Token TOKEN")] * 3,
    ("x-token", "TOKEN"),
    ("X-Token", "Token Token TOKEN"),
    ("X-Token", "xToken TOKEN"),
    ("x-plain", "TOKEN"),
    ("x-plain", " TOKEN "),
    ("x_plain", "TOKEN"),
    ("query", "tok=TOKEN"),
    *[("Cookie", "session=TOKEN")] * 2,
    ("Cookie", "a=b; session=TOKEN; c=d"),
    ("Cookie", 'session="TOKEN"'),
    ("Cookie", "session=x; session=TOKEN"),
    ("Cookie", "Session=TOKEN"),
]

Draft = tuple[Json, Json]
"""Header and claims of a token before it is signed."""


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


_CHANGES: dict[str, Json] = {
    "role-admin": {"role": "admin"},
    "role-user": {"role": "user"},
    "role-list": {"role": ["user", "admin"]},
    "role-nested": {"perms": {"role": "admin"}},
    "role-number": {"number": 1, "flag": True, "empty": "", "role": None},
    "auth0": {"iss": "https://auth0.test"},
    "auth0-admin": {"iss": "https://auth0.test", "role": "admin"},
    "other-issuer": {"iss": "https://evil.test"},
    "issuer-case": {"iss": "https://OKTA.test"},
    "issuer-list": {"iss": ["https://okta.test"]},
    "no-issuer": {"iss": None},
    "audience-api": {"aud": "api"},
    "audience-list": {"aud": ["x", "api"]},
    "audience-other": {"aud": "x"},
    "audience-mixed": {"aud": [1, "api"]},
    "audience-number": {"aud": 1},
    "audience-empty": {"aud": []},
    "audience-slash": {"aud": "web/"},
    "audience-https": {"aud": "https://web"},
    "no-audience": {"aud": None},
    "subject-number": {"sub": 5},
    "subject-half": {"sub": "\ud800"},
    "claims-deep-40": {"x": _nested(40)},
    "claims-deep-110": {"x": _nested(110)},
    "no-expiry": {"exp": None},
    "expiry-text": {"exp": "9999999999"},
    "expiry-float": {"exp": 9999999999.5},
    "expiry-huge": {"exp": 10**30},
    "expiry-negative": {"exp": -1},
    "expiry-zero": {"exp": 0},
    "expiry-true": {"exp": True},
    "begins-text": {"nbf": "1"},
    "begins-float": {"nbf": 1.5},
    "begins-negative": {"nbf": -5},
    "issued-later": {"iat": 9999999999},
    "id-number": {"jti": 5},
}
_MOMENTS = {
    "expired-10": ("exp", -10),
    "expired-45": ("exp", -45),
    "expired-90": ("exp", -90),
    "begins-in-10": ("nbf", 10),
    "begins-in-45": ("nbf", 45),
    "begins-in-90": ("nbf", 90),
}
_HEADERS: dict[str, Json] = {
    "critical": {"crit": ["exp"], "exp": 1},
    "critical-unknown": {"crit": ["x"], "x": 1},
    "kid-other": {"kid": "nobody"},
    "kid-wrong": {"kid": "ec"},
    "kid-none": {"kid": None},
    "kid-empty": {"kid": ""},
    "kid-number": {"kid": 5},
    "kid-path": {"kid": "../../dev/null"},
    "embedded-jwk": {"jwk": {"kty": "oct", "k": "AAAA"}},
    "embedded-jku": {"jku": "https://evil.test/keys"},
    "type-odd": {"typ": "at+jwt"},
    "unencoded": {"b64": False, "crit": ["b64"]},
}
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _loosen_payload(text: str) -> str:
    header, payload, signature = text.split(".")
    return f"{header}.{payload}=.{signature}"


_TEXTS: dict[str, Callable[[str], str]] = {
    "two-parts": lambda t: t.rpartition(".")[0],
    "four-parts": lambda t: t + ".x",
    "five-parts": lambda t: t + ".x.y",
    "no-signature": lambda t: t.rpartition(".")[0] + ".",
    "padded": lambda t: t + "=",
    "truncated": lambda t: t[:-3],
    "loose-bits": lambda t: t[:-1] + _ALPHABET[_ALPHABET.index(t[-1]) ^ 1],
    "loose-payload": _loosen_payload,
    "flipped": lambda t: t[:-20] + ("A" if t[-20] != "A" else "B") + t[-19:],
    "plus": lambda t: t.replace("_", "/").replace("-", "+"),
    "dotted": lambda t: "." + t,
    "word": lambda t: "x",
    "dots": lambda t: "..",
    "nothing": lambda t: "",
}
_SIGNERS = ("ec", "ed", "hs", "hs-confused", "none", "None", "hs512", "rs512", "ps256", "foreign")
_PAYLOADS = {
    "payload-list": b"[]",
    "payload-text": b'"x"',
    "payload-empty": b"",
    "payload-twice": b'{"iss":"https://evil.test","iss":"https://okta.test","exp":9999999999,"aud":"web"}',
    "payload-utf8": b'{"iss":"https://okta.test","exp":9999999999,"aud":"web","x":"\xff"}',
    "payload-deep": b'{"iss":"https://okta.test","exp":9999999999,"aud":"web","x":' + b"[" * 200
    + b"]" * 200 + b"}",
    "payload-utf16": '{"iss":"https://okta.test","exp":9999999999,"aud":"web"}'.encode("utf-16"),
    "payload-null": b'{"iss":"https://okta.test","exp":9999999999,"aud":"web","sub":null}',
    "payload-null-time": b'{"iss":"https://okta.test","exp":9999999999,"aud":"web","nbf":null}',
    "payload-null-aud": b'{"iss":"https://okta.test","exp":9999999999,"aud":null}',
    "payload-control": b'{"iss":"https://okta.test","exp":9999999999,"aud":"web","x":"\x01"}',
    "payload-nan": b'{"iss":"https://okta.test","exp":NaN,"aud":"web"}',
    "payload-comment": b'{"iss":"https://okta.test","exp":9999999999,"aud":"web"}//x',
}  # fmt: skip

GOOD = ["role-admin", "role-user", "auth0", "auth0-admin", "sign-ec", "sign-ed", "sign-hs", "rs512"]
NAMES = frozenset(
    [*_CHANGES, *_MOMENTS, *_HEADERS, *_TEXTS, *_PAYLOADS, *(f"sign-{name}" for name in _SIGNERS)]
)
GOOD[-1] = "sign-rs512"
_SPOT = re.compile(r"\{([a-z0-9-]+)\}", re.IGNORECASE)


class Vault:
    """
    Keys of one run, and the tokens made with them.

    Args:
        now: seconds since the epoch, from which tokens' times count.
    """

    def __init__(self, now: float) -> None:
        self._now = int(now)
        self._rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._foreign = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._ec = ec.generate_private_key(ec.SECP256R1())
        self._ed = ed25519.Ed25519PrivateKey.generate()
        self._secret = hashlib.sha512(str(now).encode()).digest()
        self.jwks = json.dumps({"keys": list(self._public())})
        self._known: dict[str, str] = {}

    def _public(self) -> Iterable[Json]:
        algorithms = jwt.algorithms
        yield {
            **algorithms.RSAAlgorithm.to_jwk(self._rsa.public_key(), as_dict=True),
            "kid": "rsa",
        }
        yield {**algorithms.ECAlgorithm.to_jwk(self._ec.public_key(), as_dict=True), "kid": "ec"}
        yield {**algorithms.OKPAlgorithm.to_jwk(self._ed.public_key(), as_dict=True), "kid": "ed"}
        yield {**algorithms.HMACAlgorithm.to_jwk(self._secret, as_dict=True), "kid": "hs"}

    def fill(self, case: Json) -> Json:
        """Put tokens where a case names them."""
        request = case["request"]
        if "{" not in str(request):
            return case
        headers = [[name, self._filled(value)] for name, value in request["headers"]]
        target = self._filled(request["target"])
        return {**case, "request": {**request, "target": target, "headers": headers}}

    def _filled(self, text: str) -> str:
        return _SPOT.sub(
            lambda found: self.token(found[1]) if found[1] in NAMES else found[0], text
        )

    def token(self, name: str) -> str:
        """The token of that name."""
        if name not in self._known:
            self._known[name] = self._make(name)
        return self._known[name]

    def _make(self, name: str) -> str:
        header: Json = {"kid": "rsa"}
        claims: Json = {"iss": ISSUERS["okta"], "aud": "web", "exp": self._now + 3600}
        if name.startswith("sign-"):
            return self._signed(name.removeprefix("sign-"), claims)
        if name in _PAYLOADS:
            return self._by_rsa(header, _PAYLOADS[name])
        claims.update(_CHANGES.get(name, {}))
        if name in _MOMENTS:
            key, shift = _MOMENTS[name]
            claims[key] = self._now + shift
        header.update(_HEADERS.get(name, {}))
        text = self._by_rsa(_without_none(header), json.dumps(_without_none(claims)).encode())
        return _TEXTS[name](text) if name in _TEXTS else text

    def _by_rsa(self, header: Json, payload: bytes) -> str:
        signing = f"{_encode(json.dumps({'alg': 'RS256', **header}).encode())}.{_encode(payload)}"
        algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
        return f"{signing}.{_encode(algorithm.sign(signing.encode(), self._rsa))}"

    def _signed(self, how: str, claims: Json) -> str:
        kinds: dict[str, tuple[Any, str, str]] = {
            "ec": (self._ec, "ES256", "ec"),
            "ed": (self._ed, "EdDSA", "ed"),
            "hs": (self._secret, "HS256", "hs"),
            "hs512": (self._secret, "HS512", "hs"),
            "rs512": (self._rsa, "RS512", "rsa"),
            "ps256": (self._rsa, "PS256", "rsa"),
            "foreign": (self._foreign, "RS256", "rsa"),
        }
        if how in kinds:
            key, algorithm, kid = kinds[how]
            return jwt.encode(claims, key, algorithm, {"kid": kid})
        algorithm = {"hs-confused": "HS256"}.get(how, how)
        head = _encode(json.dumps({"alg": algorithm, "kid": "rsa"}).encode())
        signing = f"{head}.{_encode(json.dumps(claims).encode())}"
        if how != "hs-confused":
            return f"{signing}."
        pem = self._rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return f"{signing}.{_encode(hmac.digest(pem, signing.encode(), 'sha256'))}"

    def providers(self) -> list[JwtProvider]:
        """The providers as the engine takes them."""
        keys = read_keys(self.jwks)
        found = []
        for name, entry in PROVIDERS.items():
            given: Json = {"audiences": tuple(entry.get("Audiences", ()))}
            if "Locations" in entry:
                given["locations"] = tuple(map(_location, entry["Locations"]))
            found.append(JwtProvider(name, ISSUERS[name], keys=keys, **given))
        return found

    def entries(self) -> list[Json]:
        """The providers as Consul's entries, for ``--jwt-providers``."""
        jwks = base64.b64encode(self.jwks.encode()).decode()
        shared = {"Kind": "jwt-provider", "JSONWebKeySet": {"Local": {"JWKS": jwks}}}
        return [
            {**shared, "Name": name, "Issuer": ISSUERS[name], **entry}
            for name, entry in PROVIDERS.items()
        ]

    def http_filter(self, intentions: list[Json]) -> Json | None:
        """
        Envoy's filter that verifies tokens of every provider the intentions name.

        Source: reference 8, "Enforcement": missing and bad tokens are let through, for RBAC.
        """
        named = list(dict.fromkeys(_named(intentions)))
        if not named:
            return None
        each = [
            {
                "requires_any": {
                    "requirements": [{"provider_name": name}, {"allow_missing_or_failed": {}}]
                }
            }
            for name in named
        ]
        requires = each[0] if len(each) == 1 else {"requires_all": {"requirements": each}}
        config = {
            "@type": "type.googleapis.com/"
            "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": {name: self._envoy(name) for name in named},
            "rules": [{"match": {"prefix": "/"}, "requires": requires}],
        }
        return {"name": "envoy.filters.http.jwt_authn", "typed_config": config}

    def _envoy(self, name: str) -> Json:
        entry = PROVIDERS[name]
        found: Json = {
            "issuer": ISSUERS[name],
            "payload_in_metadata": f"jwt_payload_{name}",
            "local_jwks": {"inline_string": self.jwks},
        }
        if "Audiences" in entry:
            found["audiences"] = entry["Audiences"]
        for location in entry.get("Locations", ()):
            if header := location.get("Header"):
                value = {"name": header["Name"]}
                if prefix := header.get("ValuePrefix"):
                    value["value_prefix"] = prefix
                found["forward"] = header.get("Forward", False)
                found.setdefault("from_headers", []).append(value)
            elif query := location.get("QueryParam"):
                found.setdefault("from_params", []).append(query["Name"])
            else:
                found.setdefault("from_cookies", []).append(location["Cookie"]["Name"])
        return found


def _named(intentions: list[Json]) -> Iterable[str]:
    for item in rbac.by_rank(intentions):
        for part in (item, *(item.get("Permissions") or ())):
            yield from (each["Name"] for each in (part.get("JWT") or {}).get("Providers", ()))


def _location(item: Json) -> Location:
    if header := item.get("Header"):
        return Location(
            "header", header["Name"], header.get("ValuePrefix", ""), header.get("Forward", False)
        )
    if query := item.get("QueryParam"):
        return Location("query", query["Name"])
    return Location("cookie", item["Cookie"]["Name"])


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _without_none(value: Json) -> Json:
    return {key: item for key, item in value.items() if item is not None}
