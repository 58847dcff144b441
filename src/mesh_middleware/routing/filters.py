"""
Subsets: which instances a filter expression keeps.

Owns the part of go-bexpr that speaks of one entry of ``/v1/health/connect``: selectors into
``Service``, ``Node`` and ``Checks``; ``==``, ``!=``, ``in``, ``not in``, ``contains``,
``is empty``, ``matches`` and their opposites; ``and``, ``or``, ``not``, brackets. Every other
expression is refused, and a subset with such a filter has no instance: a canary that nobody can
read must not catch everyone.

Theory. A tokenizer, and a parser by recursive descent that makes closures. A key that a map lacks
makes ``==``, ``in``, ``is not empty`` and ``matches`` false and their opposites true; a selector
that names no field of the API is an error when the expression is read, not when it is used.

Source: Consul HTTP API, "Filtering" (go-bexpr).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ..exceptions import ConfigError

try:
    import re2
except ImportError:  # pragma: no cover - the extra is installed where tests run
    re2 = None

Entry = Mapping[str, Any]
Filter = Callable[[Entry], bool]

MAX_FILTER = 4096
"""Characters of an expression that is still read."""
MAX_DEPTH = 32
"""Brackets and ``not`` inside each other."""

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<quoted>"(?:[^"\\]|\\.)*"|`[^`]*`)
    | (?P<key>\[\s*"(?:[^"\\]|\\.)*"\s*\])
    | (?P<word>[A-Za-z][A-Za-z0-9_/]*(?:\.[A-Za-z0-9_/]+)*)
    | (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?=[\s)]|$))
    | (?P<sign>==|!=|[()])
    )""",
    re.VERBOSE,
)

_FIELDS = {
    "Service": {
        "ID": "text", "Service": "text", "Address": "text", "Kind": "text", "Port": "number",
        "Tags": "list", "Meta": "map", "TaggedAddresses": "map", "EnableTagOverride": "flag",
        "Namespace": "text", "Partition": "text", "Weights.Passing": "number",
        "Weights.Warning": "number", "Connect.Native": "flag", "Proxy.DestinationServiceID": "text",
        "Proxy.DestinationServiceName": "text", "Proxy.LocalServiceAddress": "text",
        "Proxy.LocalServicePort": "number", "Proxy.Mode": "text",
    },
    "Node": {
        "ID": "text", "Node": "text", "Address": "text", "Datacenter": "text", "Meta": "map",
        "TaggedAddresses": "map", "Partition": "text",
    },
    "Checks": {
        "CheckID": "text", "Name": "text", "Node": "text", "Notes": "text",
        "ServiceID": "text", "ServiceName": "text", "ServiceTags": "list", "Status": "text",
    },
}  # fmt: skip
"""Fields that a selector may name, and what they hold. Source: Consul HTTP API, "Health",
"Filtering"."""


class FilterError(ConfigError):
    """An expression that cannot be read here; the message says where."""


@lru_cache(maxsize=1024)
def compile_filter(expression: str) -> Filter:
    """
    Read a filter expression.

    Args:
        expression: such as ``Service.Meta.version == v2``.

    Returns:
        Whether an entry of ``/v1/health/connect`` fulfils it.

    Raises:
        FilterError: it is none, or says what is not understood here.
    """
    if len(expression) > MAX_FILTER:
        raise FilterError(f"filter of {len(expression)} characters; {MAX_FILTER} are read")
    return _Parser(expression).parse()


class _Parser:
    def __init__(self, expression: str) -> None:
        self._said = expression
        self._tokens = self._tokenize(expression)
        self._at = 0
        self._depth = 0

    def parse(self) -> Filter:
        found = self._either()
        if self._at < len(self._tokens):
            raise self._error("end")
        return found

    def _tokenize(self, expression: str) -> list[tuple[str, str]]:
        found, at, end = [], 0, len(expression.rstrip())
        while at < end:
            token = _TOKEN.match(expression, at)
            if token is None or token.lastgroup is None:
                raise FilterError(f"filter {expression!r}: not understood from character {at}")
            found.append((token.lastgroup, token[token.lastgroup]))
            at = token.end()
        return found

    def _error(self, wanted: str) -> FilterError:
        got = self._tokens[self._at][1] if self._at < len(self._tokens) else "its end"
        return FilterError(f"filter {self._said!r}: {wanted} expected, not {got}")

    def _take(self, *texts: str) -> bool:
        """Whether the next token is one of these words or signs; it is used up then."""
        if self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind in ("word", "sign") and text in texts:
                self._at += 1
                return True
        return False

    def _either(self) -> Filter:
        parts = [self._both()]
        while self._take("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else lambda entry: any(part(entry) for part in parts)

    def _both(self) -> Filter:
        parts = [self._one()]
        while self._take("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else lambda entry: all(part(entry) for part in parts)

    def _one(self) -> Filter:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FilterError(f"filter: more than {MAX_DEPTH} brackets inside each other")
        try:
            if self._take("not"):
                inner = self._one()
                return lambda entry: not inner(entry)
            if self._take("("):
                inner = self._either()
                if not self._take(")"):
                    raise self._error("')'")
                return inner
            return self._test()
        finally:
            self._depth -= 1

    def _test(self) -> Filter:
        first = self._operand()
        if self._take("is"):
            invert = self._take("not")
            if not self._take("empty"):
                raise self._error("'empty'")
            return _is_empty(self._selector(first), invert)
        negated = self._take("not")
        if self._take("in"):
            return _contains(self._selector(self._operand()), first[1], negated)
        if self._take("contains"):
            return _contains(self._selector(first), self._operand()[1], negated)
        if self._take("matches"):
            return _matches(self._selector(first), self._pattern(), negated)
        if not negated and self._take("==", "!="):
            differs = self._tokens[self._at - 1][1] == "!="
            return _equals(self._selector(first), self._operand()[1], differs)
        raise self._error("an operator")

    def _operand(self) -> tuple[tuple[str, ...], str]:
        """A value or selector: the keys it would be a path of, and its text."""
        if self._at >= len(self._tokens):
            raise self._error("a selector or value")
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind == "quoted":
            return (), _unquote(text)
        if kind == "number":
            return (), text
        if kind != "word":
            self._at -= 1
            raise self._error("a selector or value")
        keys = text.split(".")
        while self._at < len(self._tokens) and self._tokens[self._at][0] == "key":
            keys.append(_unquote(self._tokens[self._at][1].strip("[] \t")))
            self._at += 1
        return tuple(keys), text

    def _selector(self, operand: tuple[tuple[str, ...], str]) -> _Selector:
        keys = operand[0]
        fields = _FIELDS.get(keys[0], {}) if keys else {}
        for length in (1, 2):
            kind = fields.get(".".join(keys[1 : 1 + length]))
            rest = keys[1 + length :]
            if kind is not None and len(rest) == (1 if kind == "map" and rest else 0):
                return _Selector(keys, "text" if rest else kind)
        if keys == ("Checks",):
            return _Selector(keys, "list")
        raise FilterError(f"filter {self._said!r}: {'.'.join(keys) or operand[1]!r} is no selector")

    def _pattern(self) -> Callable[[bytes], object]:
        pattern = self._operand()[1]
        if re2 is None:
            raise FilterError(
                f"filter {self._said!r}: 'matches' needs its extra: "
                "pip install 'mesh-middleware[re2]'"
            )
        try:
            search: Callable[[bytes], object] = re2.compile(pattern.encode()).search
        except re2.error as error:
            raise FilterError(f"filter {self._said!r}: {error}") from None
        return search


def _unquote(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    return re.sub(r"\\(.)", r"\1", text[1:-1])


class _Selector:
    """A path into an entry."""

    def __init__(self, keys: tuple[str, ...], kind: str) -> None:
        self.keys = keys
        self.kind = kind

    def read(self, entry: Entry) -> list[Any]:
        """Every value at the path: one for each check below ``Checks``; ``None`` for no key."""
        head, *rest = self.keys
        value = entry.get(head)
        if not rest:
            return [value]
        return [_walk(one, rest) for one in (value if isinstance(value, list) else [value])]


def _walk(value: Any, keys: list[str]) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _equals(selector: _Selector, wanted: str, differs: bool) -> Filter:
    if selector.kind in ("list", "map"):
        raise FilterError(f"filter: {'.'.join(selector.keys)} is no text, number or flag")
    told = _told(selector.kind, wanted)
    missing = selector.kind == "text" and len(selector.keys) == 3 and "Meta" in selector.keys

    def holds(value: Any) -> bool:
        if value is None:
            # Go has "", 0 and false where JSON leaves a field out; a map has no such key.
            value = None if missing else _ZERO[selector.kind]
        return (value == told) is not differs

    return lambda entry: any(map(holds, selector.read(entry)))


_ZERO: dict[str, Any] = {"text": "", "number": 0, "flag": False}


def _told(kind: str, wanted: str) -> Any:
    try:
        if kind == "number":
            return int(wanted)
        if kind == "flag":
            return {"true": True, "false": False, "1": True, "0": False}[wanted.lower()]
    except (ValueError, KeyError):
        raise FilterError(f"filter: {wanted!r} is no {kind}") from None
    return wanted


def _contains(selector: _Selector, wanted: str, negated: bool) -> Filter:
    def holds(value: Any) -> bool:
        return (wanted in (value or ())) is not negated

    return lambda entry: any(map(holds, selector.read(entry)))


def _is_empty(selector: _Selector, invert: bool) -> Filter:
    return lambda entry: any((not value) is not invert for value in selector.read(entry))


def _matches(selector: _Selector, search: Callable[[bytes], object], negated: bool) -> Filter:
    if selector.kind != "text":
        raise FilterError(f"filter: {'.'.join(selector.keys)} is no text")

    def holds(value: Any) -> bool:
        found = isinstance(value, str) and search(value.encode()) is not None
        return found is not negated

    return lambda entry: any(map(holds, selector.read(entry)))


def compact(entry: Entry) -> dict[str, Any]:
    """Keep of an entry what a selector can name, and leave out what is empty."""
    service, node = entry.get("Service") or {}, entry.get("Node") or {}
    checks = [_some(check, _FIELDS["Checks"]) for check in entry.get("Checks") or ()]
    return {
        "Service": _some(service, _FIELDS["Service"]),
        "Node": _some(node, _FIELDS["Node"]),
        "Checks": checks,
    }


def _some(part: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    wanted = {name.partition(".")[0] for name in fields}
    return {key: value for key, value in part.items() if key in wanted and value}
