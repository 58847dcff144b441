"""
The readings of a request's headers: what each layer could take a header's values for.

Owns how repeats, lists, underscores, ``Connection`` and the Host header are read. For each header
name it gives *alternatives*: the values Envoy's rules see come first, then what other layers on
the way may see. ``None`` stands for "no such header". Knows nothing of rules.

Source: reference 5.4 and 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .facts import RequestFacts

WORDS = {
    "headers": "repeated lines apart, any of which matches: Envoy 1.40",
    "headers_joined": "repeated lines joined by a comma: WSGI, older Envoys",
    "headers_single": "one of several lines only: what a framework picks",
    "headers_split": "a line taken for a comma-separated list",
    "connection": "a header named in `Connection` is dropped, or is not",
    "underscores": "`_` and `-` in header names are one",
    "host": "Host without case and port, or taken from the target",
}
"""Names of readings that concern headers, and what they mean."""

HOST = b"host"
_PSEUDO = {b":authority": HOST}


class Alternative(NamedTuple):
    """Values of one header in one reading; ``None`` when it is absent there."""

    name: str
    values: Sequence[bytes] | None


class HeaderView:
    """
    A request's headers, read on demand, each name once.

    Args:
        facts: the request.
    """

    __slots__ = ("_cache", "_facts", "_headers", "_underscored")

    def __init__(self, facts: RequestFacts) -> None:
        self._facts = facts
        self._cache: dict[bytes, tuple[Alternative, ...]] = {}
        self._headers: dict[bytes, list[bytes]] | None = None
        self._underscored = False

    def alternatives(self, name: bytes) -> tuple[Alternative, ...]:
        """
        Read one header.

        Args:
            name: lower-case name; ``:authority`` is ``host``.

        Returns:
            The readings, the one of Envoy's rules first.
        """
        found = self._cache.get(name)
        if found is None:
            found = self._cache[name] = self._read(_PSEUDO.get(name, name))
        return found

    def _read(self, name: bytes) -> tuple[Alternative, ...]:
        if name.startswith(b":"):
            return (Alternative("headers", self._pseudo(name)),)
        headers = self._index()
        values = headers.get(name if self._facts.dashes_known else name.replace(b"_", b"-"))
        dropped = values is not None and name in self._nominated()
        found = [Alternative("connection" if dropped else "headers", None if dropped else values)]
        if dropped:
            found.append(Alternative("connection", values))
        if values is not None:
            found += _spread(values)
        if self._underscored:
            found += self._alike(name, values)
        if name == HOST and values is not None:
            found.append(Alternative("host", [*values, *_hosts(values)]))
        return tuple(found)

    def _index(self) -> dict[bytes, list[bytes]]:
        if self._headers is None:
            self._headers = {}
            for name, value in self._facts.headers:
                name = name.lower()
                self._underscored = self._underscored or b"_" in name
                self._headers.setdefault(name, []).append(value.strip(b" \t"))
        return self._headers

    def _pseudo(self, name: bytes) -> list[bytes] | None:
        facts = self._facts
        if name == b":method":
            return [facts.method]
        if name == b":path":
            return [facts.target if facts.target is not None else facts.path]
        return [b"https"] if name == b":scheme" else None

    def _nominated(self) -> set[bytes]:
        lines = self._index().get(b"connection", ())
        return {token.strip(b" \t").lower() for line in lines for token in line.split(b",")}

    def _alike(self, name: bytes, values: list[bytes] | None) -> list[Alternative]:
        dashed = name.replace(b"_", b"-")
        found = [
            v for n, vs in self._index().items() if n.replace(b"_", b"-") == dashed for v in vs
        ]
        if not found or found == values:
            return []
        return [Alternative("underscores", found), Alternative("underscores", [b",".join(found)])]


def _spread(values: list[bytes]) -> list[Alternative]:
    found = []
    if len(values) > 1:
        found.append(Alternative("headers_joined", [b",".join(values)]))
        found.append(Alternative("headers_joined", [b", ".join(values)]))
        found += [Alternative("headers_single", [value]) for value in dict.fromkeys(values)]
    parts = [part.strip(b" \t") for value in values if b"," in value for part in value.split(b",")]
    if parts:
        found.append(Alternative("headers_split", [*values, *parts]))
    return found


def _hosts(values: list[bytes]) -> list[bytes]:
    bare = [value.rpartition(b":")[0] or value for value in values]
    return [v.lower() for v in values] + bare + [v.lower() for v in bare]
