"""
Tokens that intentions demand: where they stand in a request, and who vouches for them.

Owns jwt-providers as values, and the search for tokens. Fetches nothing: remote keys come in with
the provider. A token never replaces the identity of the peer; it is only asked for after that.

Theory: Envoy's filter asks every provider that the service's intentions name, one after the other,
also those that this request's intention does not. Of one provider it tries the tokens from the last
place to the first until one is bad, and keeps what the last good one claims. A header with a good
token is removed then, unless the provider forwards it: the next provider, and the rules, no longer
see it; so it goes with a query parameter. The *lenient* judgement does all that; ours wants every
token in the request to be good.

Source: reference 5.3 and 8; Envoy 1.40's jwt_authn filter, observed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote_plus

from . import jws
from .facts import RequestFacts
from .headers import HeaderView
from .jws import BadTokenError, Claims, Key, KeySet, Terms, read_keys
from .model import JwtDemand
from .reasons import Reason

__all__ = [
    "DEFAULT_LOCATIONS",
    "Claims",
    "JwtProvider",
    "Key",
    "KeySet",
    "Location",
    "Tokens",
    "read_keys",
]

_TOKEN_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


@dataclass(frozen=True, slots=True)
class Location:
    """
    A place to look for a token.

    Args:
        kind: of place.
        name: of the header, parameter or cookie.
        prefix: is cut from the value of a header.
        forward: whether proxies leave a header in the request once its token is verified.
    """

    kind: Literal["header", "query", "cookie"]
    name: str
    prefix: str = ""
    forward: bool = False


DEFAULT_LOCATIONS = (
    Location("header", "authorization", "Bearer "),
    Location("query", "access_token"),
)
"""Where tokens are looked for when the provider does not say."""

_ORDER = {"header": 0, "query": 1, "cookie": 2}


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
        skew: seconds a clock may be off; more than 30 count as 30.
    """

    name: str
    issuer: str
    audiences: tuple[str, ...] = ()
    locations: tuple[Location, ...] = DEFAULT_LOCATIONS
    keys: KeySet | None = None
    jwks_uri: str = field(default="", repr=False)
    cache_seconds: float = 300.0
    timeout: float = 1.0
    forward_header: str = ""
    forward_padded: bool = False
    skew: float = jws.SKEW

    @property
    def forward(self) -> bool:
        """Whether proxies leave verified tokens in the request: the last header's word holds."""
        headers = [place.forward for place in self.locations if place.kind == "header"]
        return bool(headers) and headers[-1]


class Tokens:
    """
    The tokens of one request.

    Args:
        facts: the request.
        view: its headers, in every reading.
        providers: jwt-providers by name, those that intentions name first, in their order.
        named: how many of them intentions name: these the filter asks.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        facts: RequestFacts,
        view: HeaderView,
        providers: Mapping[str, JwtProvider],
        named: Sequence[str],
        now: float,
    ) -> None:
        self._facts = facts
        self._view = view
        self._providers = providers
        self._named = named
        self._now = now
        self._removed: set[bytes] | None = None
        self._vouched: dict[str, Claims | Reason] = {}

    @property
    def removed(self) -> set[bytes]:
        """Headers and ``?parameters`` that proxies take out once their tokens are verified."""
        if self._removed is None:
            self._removed = set()
            for name in self._named:
                self._vouched[name] = self._filter(name, self._removed)
        return self._removed

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
        assert self.removed is not None  # the filter has run
        kept = self._vouched.get(demand.provider, Reason.JWT_UNKNOWN_PROVIDER)
        if isinstance(kept, Reason):
            return kept
        checked = [kept]
        if not lenient:
            try:
                checked += self._verified(self._providers[demand.provider])
            except BadTokenError:
                return Reason.JWT_INVALID
        for claims in checked:
            if not all(_at(claims, claim.path) == claim.value for claim in demand.claims):
                return Reason.JWT_CLAIMS
        return kept

    def _filter(self, name: str, removed: set[bytes]) -> Claims | Reason:
        """Verify as Envoy's filter does, from the last token to the first."""
        provider = self._providers.get(name)
        if provider is None:
            return Reason.JWT_UNKNOWN_PROVIDER
        if jws.engine() is None:
            return Reason.JWT_NO_ENGINE
        if provider.keys is None:
            return Reason.JWT_NO_KEYS
        terms = Terms(provider.issuer, provider.audiences, self._now, lenient=True)
        kept: Claims | Reason = Reason.JWT_MISSING
        gone = set(removed)
        for token, place in reversed(list(self._lenient_tokens(provider, gone))):
            try:
                kept = jws.verify(token, terms, provider.keys)
            except BadTokenError:
                return Reason.JWT_INVALID if isinstance(kept, Reason) else kept
            if place and not provider.forward:
                removed.add(place)
        return kept

    def _lenient_tokens(
        self, provider: JwtProvider, gone: set[bytes]
    ) -> Iterator[tuple[str, bytes]]:
        """Find what Envoy takes for tokens, with the header or ``?parameter`` each stands in."""

        def rank(place: Location) -> tuple[int, str]:
            return (_ORDER[place.kind], place.name.lower() + place.prefix)

        for location in sorted(provider.locations, key=rank):
            if location.kind == "query":
                place = b"?" + location.name.encode()
                values = [] if place in gone else self._parameters(location.name)
                yield from ((v, place) for v in values[:1])
            elif location.kind == "cookie":
                lines = [] if b"cookie" in gone else self._lines(b"cookie")
                values = [v for line in lines for v in _cookies(line, location.name)]
                yield from ((v, b"") for v in values[:1])
            else:
                header = location.name.encode().lower()
                for line in () if header in gone else self._lines(header):
                    before, prefix, rest = line.partition(location.prefix or "\0")
                    if location.prefix and prefix:
                        yield (_from_token(rest), header)
                    elif not location.prefix:
                        yield (before, header)

    def _verified(self, provider: JwtProvider) -> list[Claims]:
        """Verify every token in the request, wherever any reader may find one, by our terms."""
        assert provider.keys is not None
        now, skew = self._now, provider.skew
        terms = Terms(provider.issuer, provider.audiences, now, lenient=False, skew=skew)
        found = dict.fromkeys(self._all_tokens(provider))
        return [jws.verify(token, terms, provider.keys) for token in found]

    def _all_tokens(self, provider: JwtProvider) -> Iterator[str]:
        for location in provider.locations:
            if location.kind == "query":
                yield from self._parameters(location.name)
                continue
            cookie = location.kind == "cookie"
            header = b"cookie" if cookie else location.name.encode().lower()
            for line in self._every_line(header):
                if cookie:
                    yield from _cookies(line, location.name)
                elif line.strip(" \t"):
                    yield _after_scheme(line, location.prefix)

    def _lines(self, header: bytes) -> list[str]:
        values = self._view.alternatives(header)[0].values or ()
        return [value.decode("latin-1") for value in values]

    def _every_line(self, header: bytes) -> dict[str, None]:
        # As lists apart a line would be judged in pieces; a token has no comma.
        read = [a for a in self._view.alternatives(header) if a.name != "headers_split"]
        lines = [value for a in read for value in a.values or ()]
        return dict.fromkeys(value.decode("latin-1") for value in lines)

    def _parameters(self, wanted: str) -> list[str]:
        pairs = (p.partition("=") for p in self._facts.query.decode("latin-1").split("&"))
        return [unquote_plus(value) for name, _, value in pairs if unquote_plus(name) == wanted]


def _from_token(text: str) -> str:
    """Cut what stands before the first character a token can have."""
    start = next((place for place, char in enumerate(text) if char in _TOKEN_CHARS), 0)
    return text[start:]


def _after_scheme(line: str, prefix: str) -> str:
    """
    Find the token in a header's line.

    Applications compare the scheme without case, and take any white space after it. Whatever else
    stands in the place of a token counts as one that is not good.

    Raises:
        BadTokenError: the line does not begin with *prefix*.

    Source: RFC 9110, 11.1 and 11.6.2; RFC 6750, 2.1.
    """
    if line.startswith(prefix):
        return line.removeprefix(prefix)
    scheme = prefix.rstrip(" \t")
    text = line.strip(" \t")
    rest = text[len(scheme) :]
    if text[: len(scheme)].lower() != scheme.lower():
        raise BadTokenError
    if scheme != prefix and rest[:1] not in (" ", "\t"):
        raise BadTokenError
    return rest.strip(" \t")


def _cookies(text: str, wanted: str) -> Iterator[str]:
    for pair in text.split(";"):
        name, _, value = pair.strip(" \t").partition("=")
        if name == wanted:
            yield value.strip('"')


def _at(claims: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(claims, dict):
            return None
        claims = claims.get(key)
    return claims if isinstance(claims, str) else None
