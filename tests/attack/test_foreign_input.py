"""What others write: traces, pages in a browser, URLs with secrets, patterns over foreign text."""

from __future__ import annotations

import ast
import http.client
import io
import json
import logging
import re
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

import mesh_middleware
from mesh_middleware import Mesh
from mesh_middleware.config import load_settings
from mesh_middleware.dev import DevAgent
from mesh_middleware.dev.http import parse_duration
from mesh_middleware.exceptions import ConfigError
from mesh_middleware.trace import current_trace, remember_trace
from mesh_middleware.urls import redacted

from ..support.servers import PATIENCE, until

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


# -- traces ----------------------------------------------------------------------------------------


def passed_on(*headers: tuple[bytes, bytes]) -> list[bytes]:
    """What a call made while such a request is served carries."""

    def work() -> list[bytes]:
        remember_trace(headers)
        return [name for name, _ in current_trace()]

    return copy_context().run(work)


SOUND = [PARENT, b"cc" + PARENT[2:], b"01" + PARENT[2:] + b"-what-comes-later"]
UNSOUND = [
    b"",
    b"of-alice",
    PARENT + b"\r\nx: y",
    PARENT + b"\x01",
    PARENT[:-1],
    PARENT + b"-more",
    PARENT.upper(),
    b" " + PARENT,
    b"ff" + PARENT[2:],
    b"00-" + b"0" * 32 + PARENT[35:],
    PARENT[:36] + b"0" * 16 + PARENT[52:],
    b"01" + PARENT[2:] + b"-\x7f",
]


@pytest.mark.parametrize("value", SOUND)
def test_a_trace_of_the_standards_form_is_passed_on(value: bytes) -> None:
    """Of later versions, too."""
    assert passed_on((b"traceparent", value), (b"tracestate", b"a=1,b=2")) == [
        b"traceparent",
        b"tracestate",
    ]


@pytest.mark.parametrize("value", UNSOUND)
def test_any_other_trace_is_dropped(value: bytes) -> None:
    """An upstream, or the writer of requests, would refuse the call for it."""
    assert passed_on((b"traceparent", value), (b"tracestate", b"a=1")) == []


@pytest.mark.parametrize("state", [b"a=\x01", b"a=\r\nx: y", b"a=\xff", b"a=" + b"b" * 2000])
def test_a_state_that_is_unsound_is_dropped_alone(state: bytes) -> None:
    """The parent is still good."""
    assert passed_on((b"traceparent", PARENT), (b"tracestate", state)) == [b"traceparent"]


def test_two_parents_are_none() -> None:
    """Nobody can say which is meant."""
    assert passed_on((b"traceparent", PARENT), (b"traceparent", PARENT)) == []


# -- a page in a browser ---------------------------------------------------------------------------


@pytest.fixture
def dev() -> Iterator[DevAgent]:
    """An agent that nobody has written to."""
    with DevAgent() as agent:
        yield agent


BODY = json.dumps({"SourceName": "bad", "DestinationName": "tax", "Action": "allow"})


def send(agent: DevAgent, method: str, path: str, headers: dict[str, str]) -> int:
    """Status of one request, with a body that creates an intention."""
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=PATIENCE)
    try:
        connection.request(method, path, BODY, headers)
        return connection.getresponse().status
    finally:
        connection.close()


CROSS_SITE = {
    "a form": {"Content-Type": "text/plain", "Origin": "https://evil.example"},
    "a page without an origin": {"Content-Type": "text/plain", "Origin": "null"},
    "JSON": {"Content-Type": "application/json", "Origin": "https://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "fetch metadata alone": {"Sec-Fetch-Site": "cross-site"},
    "the same site, another origin": {"Sec-Fetch-Site": "same-site"},
    "a rebound name": {"Host": "evil.example:8500", "Origin": "http://evil.example:8500"},
    "a rebound name, by metadata": {"Host": "evil.example", "Sec-Fetch-Site": "same-origin"},
}
WRITES = [
    ("POST", "/v1/connect/intentions"),
    ("PUT", "/v1/connect/intentions/exact?source=bad&destination=tax"),
    ("PUT", "/v1/config"),
    ("PUT", "/v1/agent/service/register"),
    ("DELETE", "/v1/connect/intentions/exact?source=bad&destination=tax"),
    ("PUT", "/v1/dev/faults"),
]


@pytest.mark.parametrize("write", WRITES, ids=[f"{method} {path}" for method, path in WRITES])
@pytest.mark.parametrize("how", CROSS_SITE)
def test_no_page_of_another_site_writes_to_the_dev_agent(
    how: str, write: tuple[str, str], dev: DevAgent
) -> None:
    """Loopback is no authentication: any page can make a browser send this."""
    assert send(dev, *write, CROSS_SITE[how]) == 403
    assert not dev.state.services.services


def test_a_rebound_name_reads_no_key(dev: DevAgent) -> None:
    """A page whose own name was made to lead here could read what it gets."""
    headers = {"Host": "evil.example", "Sec-Fetch-Site": "same-origin"}
    assert send(dev, "GET", "/v1/agent/connect/ca/leaf/tax", headers) == 403


@pytest.mark.parametrize("headers", [{}, {"Host": "localhost"}, {"Content-Type": "text/plain"}])
def test_programs_write_as_ever(headers: dict[str, str], dev: DevAgent) -> None:
    """curl, the consul command and client libraries send neither of the two headers."""
    assert send(dev, "POST", "/v1/connect/intentions", headers) == 200


def test_its_own_page_writes(dev: DevAgent) -> None:
    """A page that the agent itself serves is of the same origin."""
    own = {"Origin": f"http://127.0.0.1:{dev.port}", "Sec-Fetch-Site": "same-origin"}
    assert send(dev, "POST", "/v1/connect/intentions", own) == 200


# -- secrets in URLs -------------------------------------------------------------------------------

CANARY = "s3cr3t"
URLS = {
    "http://user:s3cr3t@idp.example/keys": "http://...@idp.example/keys",
    "https://idp.example:8443/keys?api_key=s3cr3t": "https://idp.example:8443/keys?...",
    "https://idp.example/keys#s3cr3t": "https://idp.example/keys?...",
    "https://s3cr3t@[2001:db8::1]:1/": "https://...@[2001:db8::1]:1/",
    "file:///etc/keys.json": "file:///etc/keys.json",
    "https://[s3cr3t": "(a URL)",
    "https://idp.example:s3cr3t/": "(a URL)",
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_shown_without_what_may_be_secret(url: str) -> None:
    """Who reads a log sees which it is."""
    assert redacted(url) == URLS[url]


@pytest.mark.parametrize(
    "agent", ["http://a/?token=s3cr3t", "http://u:s3cr3t@a", "http://a/#s3cr3t"]
)
def test_an_agents_address_with_a_secret_is_not_quoted(agent: str) -> None:
    """The error tells the rule."""
    with pytest.raises(ConfigError) as caught:
        load_settings({"service": "tax", "agent": agent}, environ={})
    assert CANARY not in str(caught.value) and "(hidden)" in str(caught.value)


def test_credentials_of_a_jwks_uri_are_shown_nowhere(dev: DevAgent) -> None:
    """Log at every level, status, metrics, `repr` of what is believed."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(1)
    uri = f"http://user:{CANARY}@127.0.0.1:9/keys?api_key={CANARY}"
    remote = {"URI": uri, "FetchAsynchronously": True}
    dev.set_protocol("tax", "http")
    entry = {"Kind": "jwt-provider", "Name": "idp", "Issuer": "i"}
    dev.put_entry({**entry, "JSONWebKeySet": {"Remote": remote}})
    rule = {"Action": "allow", "HTTP": {"PathPrefix": "/"}, "JWT": {"Providers": [{"Name": "idp"}]}}
    dev.permissions("invoice", "tax", [rule])
    try:
        with Mesh("tax", agent=dev.url, register=False, plugins=()) as mesh:
            until(lambda: "jwt_keys_unread" in mesh.status()["events"], "the keys to be asked for")
            shown: list[Any] = [
                mesh.status(),
                mesh.metrics(),
                mesh.snapshot,
                mesh.snapshot.conditions,
            ]
            assert CANARY not in repr(shown)
            assert "127.0.0.1:9/keys" in repr(mesh.status())
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    # The agent's own answer, which a debug log of a library may hold, is not ours to change.
    own = [
        line for line in text.getvalue().splitlines() if "mesh_middleware" in line or "jwt" in line
    ]
    assert not [line for line in own if CANARY in line]


# -- patterns --------------------------------------------------------------------------------------

SOURCES = Path(mesh_middleware.__file__).parent
FUNCTIONS = {"compile", "match", "fullmatch", "search", "sub", "split", "findall", "finditer"}
ALL = frozenset(range(256))


def patterns() -> list[tuple[str, str | bytes]]:
    """Every literal that is given to `re` in the package, with its place."""
    found: list[tuple[str, str | bytes]] = []
    for file in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            named = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
            if named and node.func.attr in FUNCTIONS and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str | bytes):
                    found.append((f"{file.relative_to(SOURCES)}:{node.lineno}", first.value))
    return found


def first_of(items: Any) -> frozenset[int]:
    """Characters that a part of a pattern can begin with, as far as is known; else all."""
    found: frozenset[int] = frozenset()
    for op, value in items:
        name = str(op)
        if name == "LITERAL":
            return found | {value if value < 256 else 255}
        if name == "IN":
            return found | members(value)
        if name == "SUBPATTERN":
            return found | first_of(value[3])
        if name == "BRANCH":
            return found.union(*(first_of(branch) for branch in value[1]))
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            found |= first_of(value[2])
            if value[0] > 0:
                return found
        elif name not in ("ASSERT", "ASSERT_NOT", "AT"):
            return ALL
    return found


def members(value: Any) -> frozenset[int]:
    """Characters of a set."""
    found: frozenset[int] = frozenset()
    negated = False
    for op, what in value:
        name = str(op)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            found |= {what if what < 256 else 255}
        elif name == "RANGE":
            found |= frozenset(range(what[0], min(what[1], 255) + 1))
        elif name == "CATEGORY":
            digits, spaces = frozenset(b"0123456789"), frozenset(b" \t\r\n\x0b\x0c")
            known = {"CATEGORY_DIGIT": digits, "CATEGORY_SPACE": spaces}
            found |= known.get(str(what), ALL)
    return ALL - found if negated else found


def ambiguous(items: Any, after: frozenset[int] = frozenset()) -> bool:
    """
    Whether a pattern can match one text in ways whose number grows with the text.

    It can where a part that repeats without limit may give back what the next part takes: then the
    engine tries each division. A part that repeats is followed by itself, too.
    """
    items = list(items)
    for place, (op, value) in enumerate(items):
        name = str(op)
        following = first_of(items[place + 1 :])
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            _, most, inner = value
            endless = int(most) > 1000
            inner = list(inner)
            if (
                endless
                and len(inner) == 1
                and str(inner[0][0]) in ("LITERAL", "IN", "NOT_LITERAL", "ANY")
            ):
                # Only a second endless part behind it makes more than one pass of it.
                rest = items[place + 1 :]
                if next_endless(rest) & first_of(inner):
                    return True
            elif ambiguous(inner, first_of(inner) if endless else following):
                return True
            elif endless and ends_open(inner) & first_of(inner):
                return True
        elif name == "SUBPATTERN":
            if ambiguous(value[3], following | after):
                return True
        elif name == "BRANCH" and any(ambiguous(branch, following | after) for branch in value[1]):
            return True
    return False


def next_endless(items: Any) -> frozenset[int]:
    """What an endless part takes that can begin right here, with only optional parts before it."""
    found: frozenset[int] = frozenset()
    for op, value in items:
        name = str(op)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            if int(value[1]) > 1000:
                found |= first_of(value[2])
            else:
                found |= next_endless(value[2])
            if value[0] > 0:
                return found
        elif name == "SUBPATTERN":
            found |= next_endless(value[3])
            if first_of(value[3]):
                return found
        elif name == "POSSESSIVE_REPEAT":
            if value[0] > 0:
                return found
        else:
            return found
    return found


def ends_open(items: Any) -> frozenset[int]:
    """What a part takes at its end without limit; nothing where its end is fixed."""
    op, value = list(items)[-1]
    name = str(op)
    if name == "SUBPATTERN":
        return ends_open(value[3])
    endless = name in ("MAX_REPEAT", "MIN_REPEAT") and int(value[1]) > 1000
    return first_of(value[2]) if endless else frozenset()


def read(pattern: str | bytes) -> Any:
    """The parts of a pattern."""
    parser = __import__("re._parser", fromlist=["parse"])
    return parser.parse(pattern)


def test_no_pattern_over_foreign_text_backtracks() -> None:
    """Each is one pass, whatever the text: anything else belongs to RE2 or to a scan by hand."""
    found = patterns()
    assert len(found) > 60
    assert [place for place, pattern in found if ambiguous(read(pattern))] == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"([-+]?)((?:\d+\.?\d*|\.\d+)(?:ns|us|ms|s|m|h))+",
        r"(a+)+b",
        r"\s*\s*x",
        r"[a-z]*[a-z0-9]*!",
        r"(?:[a-z]+)*!",
        rb"[^:]*.*x",
    ],
)
def test_the_check_finds_patterns_that_backtrack(pattern: str | bytes) -> None:
    """So that the test above can fail."""
    assert ambiguous(read(pattern))


@pytest.mark.parametrize("text", ["1" * 12_000, "1." * 6_000, "1s" * 6_000 + "!", "." * 12_000])
def test_a_duration_of_many_digits_is_refused(text: str) -> None:
    """In one pass: the dev agent stood still for seconds."""
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1m30s", 90.0), ("1.5h", 5400.0), (".5s", 0.5), ("-2s", -2.0), ("1.s", 1.0)],
)
def test_durations_are_read_as_before(text: str, seconds: float) -> None:
    """As Go reads them."""
    assert parse_duration(text) == seconds
    assert re.fullmatch(r"[-.0-9hms]+", text)
