"""
Permissions compiled: from text to something that matches bytes quickly.

Owns the regular-expression engine and the tables that find the permissions whose path and method
match. Header criteria are compiled here and judged by `policy`, when a request's headers matter.
Knows nothing of sources and precedence.

Source: reference 5.4 and 12; RE2 syntax, full match, on bytes (Latin-1), as Envoy 1.40.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from . import paths
from .model import Flaw, HeaderMatch, JwtDemand, Permission
from .reasons import Reason

MAX_PROGRAM_SIZE = 100_000
"""RE2 instructions one pattern may have; what Envoy allows under Consul is bounded by memory."""

_MANY_PREFIXES = 12

Test = Callable[[bytes], bool]


@cache
def engine() -> Any:
    """
    Import RE2, once a pattern needs it: to most services it would be memory for nothing.

    Returns:
        Its module; ``None`` when the extra ``re2`` is not installed.
    """
    try:
        import re2
    except ImportError:  # pragma: no cover - the extra is installed where tests run
        return None
    return re2


@dataclass(frozen=True, slots=True)
class HeaderTest:
    """A header criterion that is ready to test values."""

    name: bytes
    test: Test | None
    invert: bool
    pattern: bool = False
    """Whether the test evaluates a regular expression, which is accounted for."""

    def matches(self, values: Sequence[bytes] | None) -> bool:
        """
        Test a header's values.

        Args:
            values: every value of the header; ``None`` when it is absent.

        Returns:
            Whether any value passes, or none does when inverted. An absent header matches only
            the inverted test of presence.
        """
        if self.test is None:
            return (values is None) is self.invert
        if values is None:
            return False
        if len(values) == 1:
            return self.test(values[0]) is not self.invert
        return any(map(self.test, values)) is not self.invert


# Told apart by identity: steps of a table are compared with each other only, and often.
@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A permission without its path."""

    index: int
    allow: bool
    reason: Reason
    methods: frozenset[bytes]
    headers: tuple[HeaderTest, ...]
    jwt: tuple[JwtDemand, ...]


@dataclass(slots=True)
class PathTable:
    """
    Finds the permissions of one intention whose path and method match.

    Args:
        permissions: in order, all of them readable.
    """

    permissions: tuple[Permission, ...]
    steps: tuple[Step, ...] = ()
    _any: list[int] = field(default_factory=list)
    _exact: dict[bytes, list[int]] = field(default_factory=dict)
    _prefixes: list[tuple[bytes, int]] = field(default_factory=list)
    _regexes: list[tuple[Test, int]] = field(default_factory=list)
    _patterns: list[tuple[str, int]] = field(default_factory=list)
    _odd: list[tuple[bytes, int]] = field(default_factory=list)
    _set: Callable[[bytes], list[int] | None] | None = None

    def __post_init__(self) -> None:
        self.steps = tuple(_step(i, p) for i, p in enumerate(self.permissions))
        for index, permission in enumerate(self.permissions):
            self._file(index, permission)
        if len(self._prefixes) + len(self._regexes) > _MANY_PREFIXES and engine():
            self._set = _pattern_set(self._prefixes, self._patterns)

    def _file(self, index: int, permission: Permission) -> None:
        text = permission.path.encode()
        if permission.path_test == "exact":
            self._exact.setdefault(text, []).append(index)
        elif permission.path_test == "prefix":
            self._prefixes.append((text, index))
        elif permission.path_test == "regex":
            self._regexes.append((compile_regex(permission.path), index))
            self._patterns.append((permission.path, index))
        else:
            self._any.append(index)
        if permission.path_test in ("exact", "prefix") and not paths.PLAIN.fullmatch(text):
            self._odd.append((text, index))

    def chain(self, method: bytes, view: paths.Reading) -> tuple[Step, ...]:
        """
        List the permissions that may decide, in order.

        Args:
            method: request method.
            view: one reading of the path; rules that are not plain are read that way too.

        Returns:
            Permissions whose method and path match, up to the first that asks no more.
        """
        matched = self._match(view)
        if len(matched) > 1:
            matched = sorted(set(matched))
        found = []
        for index in matched:
            step = self.steps[index]
            if step.methods and method not in step.methods:
                continue
            found.append(step)
            if not step.headers:
                break
        return tuple(found)

    def _match(self, view: paths.Reading) -> list[int]:
        path = view.path
        found = [*self._any, *self._exact.get(path, ())]
        if self._odd and view.name not in ("raw", "normalized"):
            found += self._match_odd(view)
        if self._set is not None:
            hits = self._set(path)
            if hits is not None:
                return found + hits
        if self._prefixes:
            found += [index for prefix, index in self._prefixes if path.startswith(prefix)]
        if self._regexes:
            found += [index for regex, index in self._regexes if regex(path)]
        return found

    def _match_odd(self, view: paths.Reading) -> list[int]:
        found = []
        for text, index in self._odd:
            read = paths.read_as(view.name, text)
            exact = self.permissions[index].path_test == "exact"
            if view.path == read if exact else view.path.startswith(read):
                found.append(index)
        return found


def _step(index: int, permission: Permission) -> Step:
    headers = tuple(map(_header_test, permission.headers))
    methods = frozenset(method.encode() for method in permission.methods)
    reason = Reason.PERMISSION_ALLOW if permission.allow else Reason.PERMISSION_DENY
    return Step(index, permission.allow, reason, methods, headers, permission.jwt)


def _header_test(match: HeaderMatch) -> HeaderTest:
    pattern = match.test == "regex"
    return HeaderTest(match.name.encode(), _value_test(match), match.invert, pattern)


def _value_test(match: HeaderMatch) -> Test | None:
    wanted = match.value.encode()
    if match.test == "present":
        return None
    if match.test == "regex":
        return compile_regex(match.value)
    if match.ignore_case:
        return _folded(match.test, wanted.lower())
    return _plain(match.test, wanted)


def _plain(test: str, wanted: bytes) -> Test:
    if test == "exact":
        return wanted.__eq__
    if test == "prefix":
        return lambda value: value.startswith(wanted)
    if test == "suffix":
        return lambda value: value.endswith(wanted)
    return lambda value: wanted in value


def _folded(test: str, wanted: bytes) -> Test:
    inner = _plain(test, wanted)
    return lambda value: inner(value.lower())


def compile_regex(pattern: str) -> Test:
    """
    Compile a pattern that `regex_flaw` has found good.

    Returns:
        A test for a full match.
    """
    match = engine().compile(pattern.encode(), _options()).fullmatch
    return lambda text: match(text) is not None


@lru_cache(maxsize=65536)
def regex_flaw(pattern: str) -> Flaw | None:
    """
    Tell why a pattern cannot be used.

    Returns:
        ``None`` when it can.
    """
    re2 = engine()
    if re2 is None:
        return Flaw(Reason.NO_REGEX_ENGINE, f"pattern {pattern!r}")
    try:
        compiled = re2.compile(pattern.encode(), _options())
    except re2.error as error:
        said = error.args[0] if error.args else ""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        detail = f"pattern {pattern!r}: {text}"
        return Flaw(Reason.BAD_PATTERN, detail, everyone=True)
    if compiled.programsize > MAX_PROGRAM_SIZE:
        return Flaw(Reason.PATTERN_TOO_LARGE, f"a pattern of {compiled.programsize} instructions")
    return None


def envoy_refuses(permissions: Sequence[Permission], default_allow: bool) -> Flaw | None:
    """
    Tell whether Envoy would refuse the whole configuration for one of these permissions.

    A permission that Consul leaves out of the rules does no harm: those after the last one whose
    action differs from the default.

    Source: reference 5.3 and 12.
    """
    kept = False
    for permission in reversed(permissions):
        kept = kept or permission.flaw is not None or permission.allow is not default_allow
        flaw = permission_flaw(permission) if kept else None
        if flaw is not None and flaw.everyone:
            return flaw
    return None


_SIMPLE = re.compile(r"\^[A-Za-z0-9_./:-]*(?:(?<=/)\[\^/\]\+(?=[/$])[A-Za-z0-9_./:-]*)+\$")
"""Patterns that `re` matches without trying twice: each ``[^/]+`` is a segment of its own."""


def full_match(pattern: str) -> Test | None:
    """
    Compile a pattern of a source; ``None`` when it cannot be.

    Names with nothing but dots in them need no engine: `re` reads those as RE2 does.
    """
    if _SIMPLE.fullmatch(pattern):
        match = re.compile(pattern.encode()).fullmatch
        return lambda text: match(text) is not None
    return None if regex_flaw(pattern) else compile_regex(pattern)


def source_flaw(pattern: str) -> Flaw | None:
    """Tell why the pattern of a source cannot be used: then it is about nobody knows whom."""
    flaw = None if _SIMPLE.fullmatch(pattern) else regex_flaw(pattern)
    return dataclasses.replace(flaw, everyone=True) if flaw else None


def read_by_envoy(permissions: Sequence[Permission]) -> tuple[Permission, ...]:
    """
    Cut off the permissions from the first whose pattern is bad: Envoy never gets those.

    Args:
        permissions: of an intention that Envoy does not refuse.
    """
    for place, permission in enumerate(permissions):
        flaw = permission_flaw(permission)
        if flaw is not None and flaw.reason is Reason.BAD_PATTERN:
            return tuple(permissions[:place])
    return tuple(permissions)


_NO_NAME = frozenset("\0\r\n")
"""What Envoy takes in no header's name: it refuses the whole configuration, as for a pattern."""


def permission_flaw(permission: Permission) -> Flaw | None:
    """Tell why a permission cannot be judged: its own flaw, or that of a pattern or name in it."""
    if permission.flaw is not None:
        return permission.flaw
    for match in permission.headers:
        if not _NO_NAME.isdisjoint(match.name):
            return Flaw(Reason.BAD_PATTERN, f"header name {match.name!r}", everyone=True)
    patterns = [match.value for match in permission.headers if match.test == "regex"]
    if permission.path_test == "regex":
        patterns.append(permission.path)
    return next((flaw for flaw in map(regex_flaw, patterns) if flaw), None)


def _options() -> Any:
    options = engine().Options()
    options.encoding = engine().Options.Encoding.LATIN1
    options.log_errors = False
    return options


def _pattern_set(
    prefixes: Sequence[tuple[bytes, int]], regexes: Sequence[tuple[str, int]]
) -> Callable[[bytes], list[int] | None]:
    """
    Match many prefixes and patterns in one pass.

    Returns:
        The matching permissions; ``None`` when the engine ran out of memory, which shows in the
        last pattern, which matches everything.
    """
    re2 = engine()
    patterns = re2.Set.FullMatchSet(_options())
    owners = []
    for prefix, index in prefixes:
        patterns.Add(re2.escape(prefix) + b"(?s:.*)")
        owners.append(index)
    for pattern, index in regexes:
        patterns.Add(pattern.encode())
        owners.append(index)
    sentinel = patterns.Add(b"(?s:.*)")
    patterns.Compile()

    def match(path: bytes) -> list[int] | None:
        hits = patterns.Match(path)
        if sentinel not in hits:
            return None
        return [owners[hit] for hit in hits if hit != sentinel]

    return match
