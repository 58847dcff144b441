"""
Which route a call takes, and what a route does to its path and headers.

Owns the tests of `Match` and `Condition`, compiled once per chain, prefix rewrites and header
changes. Knows neither splits nor instances.

Theory. What Envoy would do under Consul: the raw path without its query is compared, byte for
byte; query parameters are compared as they stand, undecoded, the first of several counts; regular
expressions are RE2's and match in full. A route whose expression cannot be compiled never matches.

Source: Consul xds/routes.go; Envoy, "HTTP route components" (reference 7 and 12).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..intentions.matchers import compile_regex, regex_flaw
from .chain import Condition, HeaderChanges, Match, Route

Test = Callable[[bytes], bool]
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class RouteTest:
    """
    A route that is ready to test calls.

    Args:
        route: the route.
        flaw: why it never matches; empty when it may.
    """

    route: Route
    flaw: str
    _path: Test | None
    _methods: frozenset[str]
    _headers: tuple[tuple[bytes, Test | None, bool], ...]
    _query: tuple[tuple[bytes, Test | None, bool], ...]

    def matches(self, method: str, path: bytes, query: bytes, headers: Headers) -> bool:
        """
        Tell whether a call takes the route.

        Args:
            method: upper case.
            path: raw, without query.
            query: raw, without question mark.
            headers: name and value; names in any case.
        """
        if self.flaw or (self._methods and method not in self._methods):
            return False
        if self._path is not None and not self._path(path):
            return False
        if not self._headers and not self._query:
            return True
        parameters = _parameters(query) if self._query else {}
        return all(
            _holds([value for key, value in headers if key.lower() == name] or None, test, invert)
            for name, test, invert in self._headers
        ) and all(
            _holds([parameters[name]] if name in parameters else None, test, invert)
            for name, test, invert in self._query
        )


def compile_route(route: Route) -> RouteTest:
    """Make *route* ready to test calls."""
    match, flaws = route.match, [route.match.flaw] if route.match.flaw else []

    def ready(condition: Condition, name: str) -> tuple[bytes, Test | None, bool]:
        return name.encode(), _value_test(condition, flaws), condition.invert

    headers = tuple(ready(one, one.name.lower()) for one in match.headers)
    query = tuple(ready(one, one.name) for one in match.query)
    path = _path_test(match, flaws)
    return RouteTest(route, "; ".join(flaws), path, frozenset(match.methods), headers, query)


def _path_test(match: Match, flaws: list[str]) -> Test | None:
    if match.path_test == "any" or (match.path_test == "prefix" and match.path == "/"):
        return None
    if match.path_test == "regex":
        return _regex(match.path, flaws)
    wanted = match.path.encode()
    if match.ignore_case:
        wanted = wanted.lower()
        if match.path_test == "exact":
            return lambda path: path.lower() == wanted
        return lambda path: path.lower().startswith(wanted)
    if match.path_test == "exact":
        return lambda path: path == wanted
    return lambda path: path.startswith(wanted)


def _value_test(condition: Condition, flaws: list[str]) -> Test | None:
    if condition.test == "present":
        return None
    if condition.test == "regex":
        return _regex(condition.value, flaws)
    wanted = condition.value.encode()
    tests: dict[str, Test] = {
        "exact": lambda value: value == wanted,
        "prefix": lambda value: value.startswith(wanted),
        "suffix": lambda value: value.endswith(wanted),
        "contains": lambda value: wanted in value,
    }
    test = tests[condition.test]
    if not condition.ignore_case:
        return test
    wanted = wanted.lower()
    return lambda value: test(value.lower())


def _regex(pattern: str, flaws: list[str]) -> Test | None:
    flaw = regex_flaw(pattern)
    if flaw is None:
        return compile_regex(pattern)
    flaws.append(f"{flaw.reason}: {flaw.detail}")
    return None


def _holds(values: Sequence[bytes] | None, test: Test | None, invert: bool) -> bool:
    # As observed on Envoy: what is absent passes only the inverted test of presence, and of
    # several values one has to pass (none, inverted).
    if test is None:
        return (values is None) is invert
    if values is None:
        return False
    return any(map(test, values)) is not invert


def _parameters(query: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name:
            found.setdefault(name, value)
    return found


def parameter(target: bytes, name: str) -> bytes | None:
    """The first value of a query parameter in a raw target, undecoded; ``None`` without one."""
    _, mark, query = target.partition(b"?")
    return _parameters(query).get(name.encode()) if mark else None


def choose_route(
    tests: Sequence[RouteTest], method: str, target: bytes, headers: Headers
) -> Route | None:
    """Find the first route that a call takes; ``None`` when there is none."""
    path, _, query = target.partition(b"?")
    for test in tests:
        if test.matches(method, path, query, headers):
            return test.route
    return None


def rewrite_target(route: Route, target: bytes) -> bytes:
    """
    Put the route's rewrite in the place of what its match matched; the query stays.

    Returns:
        A raw target; *target* itself where there is nothing to rewrite.

    Source: Envoy, ``prefix_rewrite``: it replaces the matched prefix or the whole exact path.
    """
    match = route.match
    if route.rewrite is None or match.path_test == "regex":
        return target
    path, mark, query = target.partition(b"?")
    rest = b"" if match.path_test == "exact" else path[_matched(match) :]
    path = route.rewrite.encode() + rest
    # A target without its leading slash would be another request to some servers.
    return (path if path.startswith(b"/") else b"/" + path) + mark + query


def _matched(match: Match) -> int:
    # "any" is Consul's way to leave the path out: it sends Envoy the prefix "/".
    return len(match.path.encode()) if match.path_test == "prefix" else 1


def change_headers(headers: Headers, changes: Sequence[HeaderChanges]) -> list[tuple[bytes, bytes]]:
    """
    Apply changes in order; each removes, then sets, then adds.

    Args:
        headers: name and value, in order; names in any case.
        changes: what to do.

    Source: Envoy, header parser: remove before add.
    """
    found = list(headers)
    for change in changes:
        gone = {name.lower().encode() for name in change.remove}
        gone |= {name.lower().encode() for name, _ in change.set}
        found = [pair for pair in found if pair[0].lower() not in gone]
        found += [(name.encode(), value.encode()) for name, value in (*change.set, *change.add)]
    return found
