"""
How much work a verdict is, counted in calls: not growing with what does not matter, and growing no
faster than what is sent. Times are the bench's business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from mesh_middleware.cli.batch import judge
from mesh_middleware.intentions import AsgiFacts, Normalization, memory, paths, program
from mesh_middleware.intentions import facts as asked
from mesh_middleware.intentions.matchers import PathTable

from .support import facts, header, intention, permission, policy, source

SIZE = 1000


def calls(work: Callable[[], object]) -> int:
    """Count the calls, of Python and of C, that *work* makes."""
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def scope(path: str = "/v1/x") -> AsgiFacts:
    return AsgiFacts(
        {"method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
         "headers": [(b"host", b"web")]}
    )  # fmt: skip


L7 = {"Permissions": [permission(PathPrefix="/v1")]}


@pytest.mark.parametrize("fields", [{}, L7], ids=["L4", "L7"])
@pytest.mark.parametrize("caller", ["api", "else"])
def test_intentions_about_others_cost_nothing(fields: dict[str, Any], caller: str) -> None:
    """With 1 and with 10,000 intentions a verdict takes the very same calls."""
    mine = [intention(**fields), intention("*", **fields)]
    few = policy(*mine)
    many = policy(*mine, *(intention(f"svc-{n}", **fields) for n in range(10_000)))
    taken = []
    for judged in (few, many):
        judged.decide(source(caller), scope())  # compiled at the first request
        taken.append(calls(lambda judged=judged: judged.decide(source(caller), scope())))  # type: ignore[misc]
    assert taken[0] == taken[1]


def test_an_l4_verdict_never_touches_the_request() -> None:
    """Where the identity decides, the facts are not even looked at."""
    judged = policy(intention(), intention("web", Action="deny"))
    for name in ("api", "web", "else"):
        judged.decide(source(name), None)  # type: ignore[arg-type]


def test_what_is_remembered_of_sound_targets_is_bounded() -> None:
    """Neither many targets nor long ones fill the memory; none that is unsound gets into it."""
    for number in range(2 * asked.KNOWN_TARGETS):
        assert scope(f"/books/{number}").sound
        assert len(asked._known) <= asked.KNOWN_TARGETS
    for path in ("/" + "x" * asked.KNOWN_LENGTH, "/a#b", "/a b", "/%00", ""):
        found = scope(path)
        assert [found.sound, found.sound] == [path.startswith("/xx")] * 2
        assert path.encode() not in asked._known


@pytest.mark.parametrize("kind", ["PathPrefix", "PathRegex"])
def test_path_rules_are_matched_in_one_pass(kind: str) -> None:
    """1,000 rules take as many calls as 20."""

    def taken(count: int) -> int:
        rules = [permission(**{kind: f"/v{n}/x"}) for n in range(count)]
        judged = policy(intention(Permissions=rules))
        judged.decide(source(), facts("/first"))
        return calls(lambda: judged.decide(source(), facts("/second")))

    assert taken(1000) == taken(20)


def test_a_change_of_one_intention_compiles_one() -> None:
    """The tables of the others are those of the policy before, the same objects."""
    rules = [permission(PathPrefix=f"/v{n}") for n in range(100)]
    items = [intention(f"svc-{n}", Permissions=rules[n:] + rules[:n]) for n in range(50)]
    old = policy(*items)
    items[7] = intention("svc-7", Permissions=rules)
    new = policy(*items, previous=old)
    kept = [
        table for table in new._tables.values() if any(table is t for t in old._tables.values())
    ]
    assert len(new._tables) == 50
    assert len(kept) == 49
    assert all(isinstance(table, PathTable) for table in kept)


HOSTILE: dict[str, Callable[[int], tuple[str, list[tuple[bytes, bytes]]]]] = {
    "dot segments": lambda n: ("/" + "../" * n, []),
    "escaped dot segments": lambda n: ("/" + "%2e%2e%2f" * n, []),
    "escapes": lambda n: ("/" + "%61" * n, []),
    "broken escapes": lambda n: ("/" + "%2%61" * n, []),
    "slashes": lambda n: ("/" * n, []),
    "parameters": lambda n: ("/" + ";a/" * n, []),
    "backslashes": lambda n: ("/" + "\\" * n, []),
    "percents": lambda n: ("/" + "%" * n, []),
    "a long plain path": lambda n: ("/" + "a" * n, []),
    "a long query": lambda n: ("/?" + "a=b&" * n, []),
    "one long header": lambda n: ("/", [(b"x-role", b"a" * n * 50)]),
    "a header of commas": lambda n: ("/", [(b"x-role", b"," * n)]),
    "a header many times": lambda n: ("/", [(b"x-role", b"a")] * n),
    "many headers": lambda n: ("/", [(b"x-%d" % k, b"a") for k in range(n)]),
    "many underscores": lambda n: ("/", [(b"x" + b"_" * k, b"a") for k in range(n // 20)]),
    "a long connection": lambda n: ("/", [(b"connection", b"a," * n)]),
    "many cookies": lambda n: ("/", [(b"cookie", b"a=b; " * n)]),
}

RULES = [
    permission("deny", PathRegex="/(a+)+b", **header("x-role", Regex="(a+)+b")),
    permission("deny", PathPrefix="/admin"),
    permission("deny", **header("x-role", Exact="admin")),
    permission("deny", **header("cookie", Contains="admin")),
    permission("allow", PathPrefix="/"),
]


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_requests_are_linear_work(what: str) -> None:
    """Twice the size takes at most about twice the calls, on all ways a request is read."""

    def taken(size: int) -> int:
        target, headers = HOSTILE[what](size)
        judged = policy(intention(Permissions=RULES), default_allow=True)
        asked = facts(target, headers)
        return calls(lambda: judged.decide(source(), asked)) + calls(
            lambda: judge(judged, source().uri, asked, Normalization())
        )

    taken(10)
    small, large = taken(SIZE), taken(2 * SIZE)
    assert large <= 2.2 * small + 200


@pytest.mark.parametrize("what", HOSTILE)
def test_the_number_of_readings_is_bounded(what: str) -> None:
    """However long and odd a path is, it is read in a few dozen ways at most."""
    target, _ = HOSTILE[what](500)
    path = target.partition("?")[0].encode()
    mixed = path + b"/..;x/%2e%2e/\\x//%2f%5c;y/./%61"
    found = paths.readings(mixed, paths.decode(mixed), paths.normalize(mixed))
    assert len(found) <= 80


def test_memory_is_bounded_for_all_sources_together() -> None:
    """Whatever paths callers make up, a policy remembers so many answers and no more."""
    judged = policy(*(intention(f"svc-{n}", **L7) for n in range(40)))
    for number in range(40):
        for path in range(400):
            judged.decide(source(f"svc-{number}"), scope(f"/v1/{number}/{path}"))
    kept = sum(len(one._memory) for one in judged._programs.values())
    assert 0 < kept <= memory.ALL_MEMORY


def test_long_paths_and_odd_methods_are_not_remembered() -> None:
    """What a caller can make large does not stay in memory."""
    judged = policy(intention(**L7))
    judged.decide(source(), facts("/v1/" + "a" * program.MAX_REMEMBERED))
    judged.decide(source(), facts("/v1", method="A" * 5000))
    assert all(not one._memory for one in judged._programs.values())


def test_strangers_with_odd_names_are_remembered_in_bounds() -> None:
    """Where names are patterns each caller has a judge of its own; so many and no more."""
    judged = policy(intention("a.c"), intention("*"))
    for number in range(3000):
        assert judged.decide(source(f"svc-{number}"), facts()).allowed
    assert len(judged._programs) <= 1026
