"""Routes, rewrites and header changes."""

from __future__ import annotations

import pytest

from mesh_middleware.routing import Condition, HeaderChanges, Match, Route
from mesh_middleware.routing.matching import (
    change_headers,
    choose_route,
    compile_route,
    rewrite_target,
)

from .support import get


def takes(match: Match, target: str = "/", method: str = "GET", **headers: str) -> bool:
    call = get(target, **headers)
    test = compile_route(Route(match, "x"))
    return choose_route([test], method, call.target, call.headers) is not None


@pytest.mark.parametrize(
    ("match", "target", "expected"),
    [
        (Match("exact", "/a"), "/a", True),
        (Match("exact", "/a"), "/a?b=/c", True),
        (Match("exact", "/a"), "/a/", False),
        (Match("exact", "/a"), "/A", False),
        (Match("exact", "/a", ignore_case=True), "/A", True),
        (Match("prefix", "/ad"), "/admin", True),
        (Match("prefix", "/ad"), "/x?/ad", False),
        (Match("prefix", "/AD", ignore_case=True), "/admin", True),
        (Match("prefix", "/"), "/x", True),
        (Match("regex", "/v[0-9]+"), "/v12", True),
        (Match("regex", "/v[0-9]+"), "/v12/x", False),
        (Match("regex", "/v("), "/v(", False),
        (Match("regex", r"/(?=a)"), "/a", False),
        (Match(), "/anything", True),
        (Match(flaw="later version"), "/anything", False),
    ],
)
def test_paths(match: Match, target: str, expected: bool) -> None:
    """The raw path without query: exact, prefix, or a whole RE2 match; never a bad pattern."""
    assert takes(match, target) is expected


@pytest.mark.parametrize(
    ("condition", "headers", "expected"),
    [
        (Condition("X-A", "exact", "1"), {"x_a": "1"}, True),
        (Condition("x-a", "exact", "1"), {"x_a": "2"}, False),
        (Condition("x-a", "exact", "1"), {}, False),
        (Condition("x-a", "exact", "1", invert=True), {"x_a": "2"}, True),
        (Condition("x-a", "exact", "1", invert=True), {}, False),
        (Condition("x-a", "present"), {"x_a": ""}, True),
        (Condition("x-a", "present", invert=True), {}, True),
        (Condition("x-a", "prefix", "ab"), {"x_a": "abc"}, True),
        (Condition("x-a", "suffix", "bc"), {"x_a": "abc"}, True),
        (Condition("x-a", "contains", "b"), {"x_a": "abc"}, True),
        (Condition("x-a", "contains", "B", ignore_case=True), {"x_a": "abc"}, True),
        (Condition("x-a", "regex", "a.c"), {"x_a": "abcd"}, False),
        (Condition("x-a", "regex", "a.*"), {"x_a": "abcd"}, True),
    ],
)
def test_headers(condition: Condition, headers: dict[str, str], expected: bool) -> None:
    """Names in any case; what is absent passes only the inverted test of presence."""
    assert takes(Match(headers=(condition,)), **headers) is expected


@pytest.mark.parametrize(
    ("condition", "target", "expected"),
    [
        (Condition("q", "exact", "a"), "/?q=a&q=b", True),
        (Condition("q", "exact", "b"), "/?q=a&q=b", False),
        (Condition("q", "present"), "/?q", True),
        (Condition("q", "present"), "/", False),
        (Condition("Q", "present"), "/?q=1", False),
        (Condition("q", "regex", "[0-9]+"), "/?q=12", True),
        (Condition("q", "exact", " "), "/?q=%20", False),
    ],
)
def test_query_parameters(condition: Condition, target: str, expected: bool) -> None:
    """The first of several, undecoded; names in their own case."""
    assert takes(Match(query=(condition,)), target) is expected


def test_methods() -> None:
    """One of those named, or any."""
    assert takes(Match(methods=("PUT", "POST")), method="POST")
    assert not takes(Match(methods=("PUT", "POST")), method="GET")


def test_the_first_route_that_matches_is_taken() -> None:
    """Order decides, not how much a route says."""
    wide, narrow = Route(Match("prefix", "/"), "wide"), Route(Match("exact", "/a"), "narrow")
    tests = [compile_route(narrow), compile_route(wide)]
    assert choose_route(tests, "GET", b"/a", ()) is narrow
    assert choose_route(tests[::-1], "GET", b"/a", ()) is wide
    assert choose_route(tests[:1], "GET", b"/b", ()) is None


@pytest.mark.parametrize(
    ("match", "rewrite", "target", "expected"),
    [
        (Match("prefix", "/admin/"), "/", b"/admin/x?y=/admin/", b"/x?y=/admin/"),
        (Match("prefix", "/admin"), "/", b"/admin/x", b"//x"),
        (Match("prefix", "/v1"), "/v2", b"/v1", b"/v2"),
        (Match("exact", "/old"), "/new", b"/old?a", b"/new?a"),
        (Match("regex", "/.*"), "/new", b"/old", b"/old"),
        (Match("prefix", "/a"), None, b"/a", b"/a"),
        (Match("prefix", "/a/"), "b/", b"/a/c", b"/b/c"),
        (Match("any"), "/v2/", b"/x", b"/v2/x"),
    ],
)
def test_rewrites(match: Match, rewrite: str | None, target: bytes, expected: bytes) -> None:
    """Envoy's rule: what matched is replaced, byte for byte; a leading slash stays."""
    assert rewrite_target(Route(match, "x", rewrite), target) == expected


def test_headers_are_removed_then_set_then_added() -> None:
    """In any case of the name; changes of several nodes one after the other."""
    headers = [(b"X-A", b"1"), (b"x-a", b"2"), (b"X-B", b"3"), (b"X-C", b"4")]
    changes = [
        HeaderChanges(set=(("x-a", "9"),), add=(("X-B", "5"),), remove=("x-c",)),
        HeaderChanges(add=(("x-a", "10"),)),
    ]
    assert change_headers(headers, changes) == [
        (b"X-B", b"3"), (b"x-a", b"9"), (b"X-B", b"5"), (b"x-a", b"10"),
    ]  # fmt: skip
