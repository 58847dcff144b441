"""
Verdicts that are repeated: never for a request, a peer or a moment they were not made for.

Each request is sent three times where that matters: the first is judged, the second kept, and the
third is the first to be answered from memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from mesh_middleware import Mesh, Peer, hookimpl
from mesh_middleware.doors import KNOWN, KNOWN_LENGTH, Door, Verdict
from mesh_middleware.intentions import AsgiFacts, Reason, WsgiFacts
from mesh_middleware.intentions.wire import MAX_HEAD
from mesh_middleware.mesh import set_default_mesh

from .support.doors import Exchange, Inside
from .support.servers import PATIENCE
from .support.wsgi import environ

RULES: list[dict[str, Any]] = [
    {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
    {
        "Action": "allow",
        "HTTP": {"PathExact": "/role", "Header": [{"Name": "x-role", "Exact": "boss"}]},
    },
    {"Action": "allow", "HTTP": {"PathPrefix": "/open", "Methods": ["GET"]}},
]


class Clock:
    """The time of day, and what was added to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    """Goes right until it is told otherwise."""
    return Clock()


@pytest.fixture
def inside(clock: Clock) -> Iterator[Inside]:
    """tax under default deny: report may do anything, invoice what `RULES` say."""
    with Inside(agent={"default_policy": "deny"}, clock=clock) as inside:
        inside.agent.set_protocol("tax", "http")
        inside.agent.allow("report", "tax")
        inside.agent.permissions("invoice", "tax", RULES)
        assert inside.mesh.wait_for(lambda seen: len(seen.intentions or ()) == 2, PATIENCE)
        yield inside


def ask(door: Door, peer: Peer, path: str = "/open", **scope: Any) -> Verdict:
    """Have one request judged, as `MeshAuthz` does."""
    facts = AsgiFacts(Exchange(path, **scope).scope)
    return door.recall(peer, facts.key) or door.judge(peer, facts, facts.key)


def thrice(door: Door, peer: Peer, path: str = "/open", **scope: Any) -> list[bool]:
    """Have the same request judged three times; whether each passes."""
    return [ask(door, peer, path, **scope).passes for _ in range(3)]


@pytest.mark.parametrize("source", ["report", "invoice"])
def test_the_third_request_of_a_kind_is_answered_from_memory(source: str, inside: Inside) -> None:
    """It is the same verdict, and counts like any other."""
    door, peer = Door(inside.mesh), inside.peer(source)
    first, second, third = (ask(door, peer) for _ in range(3))
    key = AsgiFacts(Exchange("/open").scope).key
    assert third is second is door.recall(peer, key)
    assert first == second and first.passes
    assert inside.mesh.counts[first.decision.reason] == 4
    assert door.recall(replace(peer), key) is None, "another connection, another certificate"
    assert door.recall(None, key) is None


@pytest.mark.parametrize("source", ["report", "invoice"])
def test_a_change_of_policy_ends_it(source: str, inside: Inside) -> None:
    """With the very next request."""
    door, peer = Door(inside.mesh), inside.peer(source)
    assert thrice(door, peer) == [True] * 3
    inside.agent.deny(source, "tax")
    version = inside.mesh.snapshot.version
    assert inside.mesh.wait_for(lambda seen: seen.version > version or _denies(seen), PATIENCE)
    assert thrice(door, peer) == [False] * 3
    assert len(door._known) <= 1


def _denies(seen: Any) -> bool:
    return any(one.allow is False for one in seen.intentions or ())


def test_no_snapshot_that_is_gone_is_kept_alive(inside: Inside) -> None:
    """Although no request comes any more: policies can be megabytes."""
    door, peer, swept = Door(inside.mesh), inside.peer("report"), threading.Event()
    assert thrice(door, peer) == [True] * 3
    inside.mesh.after_change(swept.set)
    old = inside.mesh.snapshot
    inside.agent.deny("report", "tax")
    assert inside.mesh.wait_for(lambda seen: seen is not old, PATIENCE)
    assert swept.wait(PATIENCE)
    assert door._known_by is not old and not door._known


@pytest.mark.parametrize("whose", ["peer", "leaf"])
def test_the_end_of_a_certificate_ends_it(whose: str, inside: Inside, clock: Clock) -> None:
    """The caller's, or our own, whichever comes first."""
    door, peer = Door(inside.mesh), inside.peer("report")
    leaf = inside.mesh.snapshot.leaf
    assert leaf is not None
    if whose == "leaf":
        peer = replace(peer, not_after=peer.not_after.replace(year=peer.not_after.year + 5))
    assert thrice(door, peer) == [True] * 3
    clock.ahead = (peer.expires if whose == "peer" else leaf.expires) - time.time() - 60
    assert ask(door, peer).passes
    clock.ahead += 120
    ended = ask(door, peer)
    assert not ended.passes
    assert ended.decision.reason in (Reason.PEER_EXPIRED, Reason.LEAF_EXPIRED)


def test_the_end_of_the_mesh_ends_it(inside: Inside) -> None:
    """And so does another mesh in its place."""
    door, peer = Door(), inside.peer("report")
    set_default_mesh(inside.mesh)
    try:
        assert thrice(door, peer) == [True] * 3
        with Mesh("other", agent=inside.agent.url, register=False) as other:
            assert other.ready(PATIENCE)
            set_default_mesh(other)
            assert thrice(door, peer) == [False] * 3, "nobody may call it"
        set_default_mesh(inside.mesh)
        assert ask(door, peer).passes
        inside.mesh.close()
        assert thrice(door, peer) == [False] * 3
    finally:
        set_default_mesh(None)


def test_what_a_header_decides_is_judged_each_time(inside: Inside) -> None:
    """Also where one that is allowed came often."""
    door, peer = Door(inside.mesh), inside.peer("invoice")
    boss, clerk = [(b"x-role", b"boss")], [(b"x-role", b"clerk")]
    for _ in range(4):
        assert ask(door, peer, "/role", headers=boss).passes
        assert not ask(door, peer, "/role", headers=clerk).passes
        assert not ask(door, peer, "/role").passes


@pytest.mark.parametrize("source", ["report", "invoice"])
def test_what_differs_is_judged_by_itself(source: str, inside: Inside) -> None:
    """Method, either form of the path, and a query that no sound client sends."""
    door, peer = Door(inside.mesh), inside.peer(source)
    assert thrice(door, peer, "/open?a=b") == [True] * 3
    unsound = {"a#b", "a b", "\xe4", "\x01"}
    for query in unsound:
        assert thrice(door, peer, query_string=query.encode("latin-1")) == [False] * 3, query
    assert thrice(door, peer, raw_path=b"/open%00", path="/open\0") == [False] * 3
    assert thrice(door, peer, raw_path=b"/open#x") == [False] * 3
    assert thrice(door, peer, "/open?a=%23") == [True] * 3
    free = source == "report"
    assert thrice(door, peer, method="POST") == [free] * 3
    assert thrice(door, peer, path="/admin") == [free] * 3
    assert thrice(door, peer, raw_path=b"/admin/%2e%2e/open") == [free] * 3
    assert thrice(door, peer) == [True] * 3


@pytest.mark.parametrize("settles", ["http://tax", "http://tax/open"])
def test_a_query_that_makes_a_target_unsound_is_judged(settles: str, inside: Inside) -> None:
    """``http://tax`` is a target, ``http://tax?x`` is none: no slash before the query."""
    door, peer = Door(inside.mesh), inside.peer("report")
    assert thrice(door, peer, settles) == [True] * 3
    for _ in range(3):
        verdict = ask(door, peer, "http://tax?x")
        assert verdict.decision.reason is Reason.UNSOUND_TARGET
        assert ask(door, peer, settles).passes


def test_a_query_that_makes_a_target_too_long_is_judged(inside: Inside) -> None:
    """Also where what it is asked of is well known; by the policy's own memory, too."""
    door, peer = Door(inside.mesh), inside.peer("invoice")
    assert thrice(door, peer) == [True] * 3
    for _ in range(3):
        assert not ask(door, peer, "/open?" + "q" * MAX_HEAD).passes
        assert ask(door, peer, "/open?" + "q" * (MAX_HEAD - 6)).passes


@pytest.mark.parametrize("hook", ["mesh_restrict", "mesh_decision"])
def test_plugins_that_judge_or_watch_hear_of_each(hook: str) -> None:
    """So nothing is repeated where there is one."""
    heard: list[str] = []

    class Plugin:
        @hookimpl
        def mesh_restrict(self, source: Any, facts: Any) -> bool | None:
            heard.append("mesh_restrict")
            return len(heard) < 4

        @hookimpl
        def mesh_decision(self, decision: Any, source: Any, facts: Any) -> None:
            heard.append("mesh_decision")

    other = ({"mesh_restrict", "mesh_decision"} - {hook}).pop()
    delattr(Plugin, other)
    with Inside(plugins=[Plugin()]) as inside:
        door, peer = Door(inside.mesh), inside.peer("report")
        passed = [ask(door, peer).passes for _ in range(5)]
    assert heard == [hook] * 5
    assert passed == [True, True, True, hook == "mesh_decision", hook == "mesh_decision"]


def test_what_is_remembered_is_bounded(inside: Inside) -> None:
    """However many paths there are, and however long they are."""
    door, peer = Door(inside.mesh), inside.peer("report")
    for number in range(KNOWN * 2 + 10):
        assert ask(door, peer, f"/open/{number}").passes
        assert len(door._known) <= KNOWN
    held = len(door._known)
    assert thrice(door, peer, "/open?" + "q" * KNOWN_LENGTH) == [True] * 3
    assert thrice(door, peer, "/" + "p" * KNOWN_LENGTH) == [True] * 3
    assert len(door._known) == held


Make = Callable[[Random], AsgiFacts | WsgiFacts]


def _asgi(random: Random) -> AsgiFacts:
    path = random.choice(["/open", "/open/a", "/admin", "/role", "/open/../admin", "/%6fpen", "/x"])
    query = random.choice(["", "?q=1", "?q=#", "?q=%20", "?\xff"])
    headers = random.choice([[], [(b"x-role", b"boss")], [(b"x-role", b"clerk")]])
    kind = random.choice(["http", "http", "websocket"])
    made = Exchange(path, kind, headers=headers).scope
    made["method"] = random.choice(["GET", "GET", "POST", "BREW"])
    made["query_string"] = query[1:].encode("latin-1")
    if random.random() < 0.2:
        made["raw_path"] = random.choice([None, b"/open", b"/admin", b"open"])
    return AsgiFacts(made)


def _wsgi(random: Random) -> WsgiFacts:
    made = environ(random.choice(["/open", "/open/a", "/admin", "/role", "/x", "open"]))
    made["QUERY_STRING"] = random.choice(["", "q=1", "q=#", "\xff"])
    made["REQUEST_METHOD"] = random.choice(["GET", "POST"])
    made["SCRIPT_NAME"] = random.choice(["", "", "/open", "/admin"])
    if random.random() < 0.3:
        made["HTTP_X_ROLE"] = random.choice(["boss", "clerk"])
    if random.random() < 0.3:
        made["RAW_URI"] = random.choice(["/open", "/admin", "/open?x=#", "/open?x=1"])
    return WsgiFacts(made)


@pytest.mark.parametrize("make", [_asgi, _wsgi])
@pytest.mark.parametrize("seed", range(3))
def test_memory_never_differs_from_judgement(make: Make, seed: int, inside: Inside) -> None:
    """Thousands of requests that come again and again: each gets what it would get alone."""
    random = Random(seed)
    door, peers = Door(inside.mesh), [inside.peer(name) for name in ("report", "invoice", "web")]
    repeated = 0
    for _ in range(4000):
        facts, peer = make(random), random.choice(peers)
        known = door.recall(peer, facts.key)
        found = known or door.judge(peer, facts, facts.key)
        alone = inside.mesh.decide(peer, facts, booked=False)
        assert found.decision == alone, facts
        repeated += known is not None
    assert repeated > 200
