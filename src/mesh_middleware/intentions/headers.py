"""
The readings of a request's headers: what each layer could take a header's values for.

Owns how repeats, lists, underscores, ``Connection`` and the Host header are read. For each header
name it gives *alternatives*: the values Envoy's rules see come first, then what other layers on
the way may see. ``None`` stands for "no such header". Knows nothing of rules.

Theory: most requests have each header once, no underscore and no interesting ``Connection``; then
a header has one reading, found by one look into a dictionary. Only otherwise the head is read the
way Envoy's codec does (`wire`), and every other way beside it.

Source: reference 5.4 and 12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from . import paths, wire
from .facts import RequestFacts
from .model import Normalization

WORDS = {
    "headers": "lines apart, any of which matches, as Envoy 1.40 and ASGI see them",
    "headers_joined": "lines joined by a comma, as WSGI and older proxies see them",
    "headers_single": "one of several lines alone: what a framework picks",
    "headers_split": "a line taken for a comma-separated list",
    "connection": "a header named in `Connection`: dropped, or not",
    "proxy": "a header that proxies drop, add or rewrite: theirs, or as it was sent",
    "underscores": "`_` and `-` in header names taken for one",
    "host": "Host: of the target or of the header, with case and port or without",
}
"""Names of readings that concern headers, and what they mean."""

HOST = b"host"
_HARMLESS = frozenset((b"keep-alive", b"close", b"Keep-Alive"))
_TWISTED = (
    wire.UNSEEN
    | frozenset(wire.ADDED)
    | frozenset((b"connection", b"te", b"upgrade", b"expect", b"http2-settings", HOST))
)


class Alternative(NamedTuple):
    """
    Values of one header in one reading; ``None`` when it is absent there.

    They are *made up* where the proxy writes them, and nobody can foresee more than their form.
    """

    name: str
    values: Sequence[bytes] | None
    made_up: bool = False


MAX_SIZE = wire.MAX_HEAD
"""Bytes of one header's values; proxies refuse the whole head then."""

MAX_PARTS = 256
"""Values, or parts of a list, that are looked at in one header."""


MAX_EVALUATIONS = 4096
"""Patterns times values that one verdict evaluates; a request that takes more is refused."""

MAX_EVALUATED = 1 << 20
"""Bytes of header values that one verdict gives to patterns; beyond it, the same."""


class TooMuchError(Exception):
    """A request's headers take too much work to be read and judged in every way: refused."""


_ABSENT = (Alternative("headers", None),)


class HeaderView:
    """
    A request's headers, read on demand, each name once.

    Args:
        facts: the request.
        options: what proxies of this mesh do to requests.
        strict: whether more than the reading of Envoy's rules is wanted.
    """

    __slots__ = (
        "_bytes",
        "_cache",
        "_evaluations",
        "_facts",
        "_lines",
        "_merged",
        "_once",
        "_options",
        "_seen",
        "_strict",
    )

    def __init__(self, facts: RequestFacts, options: Normalization, *, strict: bool = True) -> None:
        self._facts = facts
        self._strict = strict
        self._options = options
        self._cache: dict[bytes, tuple[Alternative, ...]] = {}
        self._once = _once(facts)
        self._lines: list[tuple[bytes, bytes]] = []
        self._merged: dict[bytes, list[bytes]] = {}
        self._seen: Mapping[bytes, list[bytes]] | None = None
        self._evaluations = self._bytes = 0

    def spend(self, values: Sequence[bytes]) -> None:
        """
        Account for the evaluation of one pattern on some values.

        Raises:
            TooMuchError: `MAX_EVALUATIONS` or `MAX_EVALUATED` is exceeded.
        """
        self._evaluations += len(values)
        self._bytes += sum(map(len, values))
        if self._evaluations > MAX_EVALUATIONS or self._bytes > MAX_EVALUATED:
            raise TooMuchError("patterns would be evaluated on too many or too long header values")

    def alternatives(self, name: bytes) -> tuple[Alternative, ...]:
        """
        Read one header.

        Args:
            name: lower-case name; ``:authority`` is ``host``.

        Returns:
            The readings, the one of Envoy's rules first.

        Raises:
            TooMuchError: the header is too large, or too long a list.
        """
        sure, values = self.plainly(name)
        if sure:
            return (Alternative("headers", values),)
        found = self._cache.get(name)
        if found is None:
            found = self._cache[name] = tuple(self._read(name))
        return found

    def plainly(self, name: bytes) -> tuple[bool, Sequence[bytes] | None]:
        """
        Read one header, where it has one reading only: nearly always.

        Returns:
            Whether it has, and its values then; ``None`` when it is absent.
        """
        once = self._once
        if once is None or name in _TWISTED or name.startswith(b":"):
            return False, None
        value = once.get(name if self._facts.dashes_known else name.replace(b"_", b"-"))
        if value is None:
            return True, None
        return (False, None) if b"," in value else (True, (value.strip(b" \t"),))

    def _read(self, name: bytes) -> list[Alternative]:
        if name == b":authority":
            name = HOST
        if name.startswith(b":"):
            return self._pseudo(name)
        seen = self._read_head()
        wanted = name if self._facts.dashes_known else name.replace(b"_", b"-")
        envoy = seen.get(wanted)
        found = [Alternative("headers", envoy, wanted in wire.MADE_UP and self._made_up(wanted))]
        if not self._strict:
            return found
        sent = [value for line, value in self._lines if line == wanted] or None
        _check_size([*(envoy or ()), *(sent or ())])
        if sent != envoy:
            found.append(Alternative(self._why(wanted, sent, envoy), sent))
        for values in (envoy, sent):
            if values is not None:
                found += _spread(name, values)
        if not self._facts.dashes_known and wanted not in wire.JOINED:
            found += [Alternative("headers_single", [part]) for part in _parts(sent or ())]
        found += self._alike(wanted, sent)
        if name == HOST and envoy is not None:
            found.append(Alternative("host", [*envoy, *_hosts([*envoy, *(sent or ())])]))
        return found

    def _made_up(self, name: bytes) -> bool:
        return name == wire.CLIENT_CERT or not self._merged.get(name, [b""])[0]

    def _why(self, name: bytes, sent: object, envoy: object) -> str:
        if sent is not None and envoy is not None:
            return "host" if name == HOST else "headers"
        tokens = b",".join(self._merged.get(b"connection", ())).lower().split(b",")
        return "connection" if name in (token.strip() for token in tokens) else "proxy"

    def _read_head(self) -> Mapping[bytes, list[bytes]]:
        if self._seen is None:
            facts = self._facts
            self._lines = wire.read_lines(facts.headers)
            self._merged = wire.merge(self._lines, self._options)
            target = facts.target
            parts = wire.split_target(target) if target is not None else None
            if parts is not None and parts.authority:
                self._merged[HOST] = [parts.authority]
            self._seen = wire.visible(self._merged)
        return self._seen

    def _pseudo(self, name: bytes) -> list[Alternative]:
        facts = self._facts
        if name == b":method":
            return [Alternative("headers", [facts.method])]
        if name not in (b":path", b":scheme"):
            return list(_ABSENT)
        target = facts.target
        if target is None:
            target = quote_from_bytes(facts.path).encode()
            target += b"?" + facts.query if facts.query else b""
        parts = wire.split_target(target)
        if name == b":scheme":
            self._read_head()
            return [Alternative("headers", [wire.scheme(parts, self._merged)])]
        normal = paths.envoy_path(parts.path, self._options) if parts is not None else None
        if parts is None or normal is None:
            return [Alternative("raw", [target])]
        seen = normal + parts.query
        found = [Alternative("normalized", [seen])]
        return found if seen == target else [*found, Alternative("raw", [target])]

    def _alike(self, name: bytes, values: list[bytes] | None) -> list[Alternative]:
        if not any(b"_" in line for line, _ in self._lines):
            return []
        dashed = name.replace(b"_", b"-")
        found = [value for line, value in self._lines if line.replace(b"_", b"-") == dashed]
        if not found or found == values:
            return []
        _check_size(found)
        return [Alternative("underscores", found), Alternative("underscores", [b",".join(found)])]


def _check_size(values: Sequence[bytes]) -> None:
    parts = sum(value.count(b",") for value in values) + len(values)
    if parts > MAX_PARTS or sum(map(len, values)) > 2 * MAX_SIZE:
        raise TooMuchError(f"a header of {parts} values")


def _once(facts: RequestFacts) -> dict[bytes, bytes] | None:
    """Index the headers, where each has a single reading: lower case, once, nothing named."""
    if not facts.names_lowered:
        return None
    headers = facts.headers
    found = dict(headers)
    names = b"".join(found)
    if len(found) != len(headers) or b"_" in names or not names.islower():
        return None
    named = found.get(b"connection")
    return found if named is None or named in _HARMLESS else None


def _parts(values: Sequence[bytes]) -> list[bytes]:
    return [part.strip(b" \t") for value in values if b"," in value for part in value.split(b",")]


def _spread(name: bytes, values: Sequence[bytes]) -> list[Alternative]:
    found = []
    if len(values) > 1:
        if name == b"cookie":  # HTTP/2 sends its pieces apart
            found.append(Alternative("headers_joined", [b"; ".join(values)]))
        found.append(Alternative("headers_joined", [b",".join(values)]))
        found.append(Alternative("headers_joined", [b", ".join(values)]))
        found += [Alternative("headers_single", [value]) for value in dict.fromkeys(values)]
    if parts := _parts(values):
        found.append(Alternative("headers_split", [*values, *parts]))
    return found


def _hosts(values: Sequence[bytes]) -> list[bytes]:
    bare = [value.rpartition(b":")[0] or value for value in values]
    return [*values, *(v.lower() for v in values), *bare, *(v.lower() for v in bare)]
