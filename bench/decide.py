"""
``python -m bench.decide``: what a verdict costs, and what ten thousand intentions do.

Owns the measurements of the engine alone: no server, no network, no agent; and the real Envoy with
as many intentions beside it. What is compared takes turns inside every round, and a ratio is formed
inside a round.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import unquote

from tests.differential import envoy, rbac

from mesh_middleware.consul.intentions import parse_match
from mesh_middleware.consul.rereading import MatchReader
from mesh_middleware.identity import ServiceId
from mesh_middleware.intentions import (
    AsgiFacts,
    Policy,
    RequestFacts,
    WsgiFacts,
    compile_policy,
)

from . import machine
from .figures import Figure, Target
from .stats import Estimate, estimate

Json = dict[str, Any]
TRUST_DOMAIN = "9361e7cf-537e-691c-5263-92d523793c73.consul"
CALLER = ServiceId(TRUST_DOMAIN, "default", "dc1", "api")
STRANGER = ServiceId(TRUST_DOMAIN, "default", "dc1", "unheard-of")
MANY = 10_000
CHUNK = 1000
"""Requests between two looks at the clock."""

L7 = [
    {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
    {"Action": "allow", "HTTP": {"PathPrefix": "/books", "Methods": ["GET"]}},
    {"Action": "allow", "HTTP": {"PathRegex": "/v[0-9]+/.*"}},
]
WITH_HEADER = [
    {"Action": "deny", "HTTP": {"Header": [{"Name": "x-role", "Exact": "guest"}]}},
    *L7,
]


def intention(name: str, **fields: Any) -> Json:
    """An intention as the match endpoint writes it."""
    return {
        "SourceNS": "default",
        "SourceName": name,
        "DestinationNS": "default",
        "DestinationName": "web",
        "SourceType": "consul",
        "Precedence": 8 if name == "*" else 9,
        "CreateIndex": 24,
        "ModifyIndex": 35,
        **(fields or {"Action": "allow"}),
    }


def answer(items: Iterable[Json]) -> bytes:
    """The match endpoint's answer, as it stands on the wire."""
    return json.dumps({"web": list(items)}, separators=(",", ":")).encode()


def others(*numbers: int) -> Iterator[Json]:
    """Intentions about other sources, by number; every fifth has permissions of its own."""
    for number in range(*numbers):
        name = f"svc-{number:05d}"
        if number % 5:
            yield intention(name)
            continue
        paths = ({"PathPrefix": f"/v{n}/x{number}", "Methods": ["GET"]} for n in range(3))
        yield intention(name, Permissions=[{"Action": "allow", "HTTP": path} for path in paths])


def made(items: Iterable[Json], previous: Policy | None = None) -> Policy:
    """A policy of what the agent answered."""
    return compile_policy(
        parse_match(answer(items), "web"),
        service="web",
        trust_domain=TRUST_DOMAIN,
        default_allow=False,
        previous=previous,
    )


def asgi(path: str) -> RequestFacts:
    """As Hypercorn hands a request over."""
    headers = [
        (b"host", b"web"),
        (b"accept", b"*/*"),
        (b"user-agent", b"python-httpx/0.28.1"),
        (b"x-role", b"clerk"),
    ]
    return AsgiFacts(
        {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
         "query_string": b"", "headers": headers}
    )  # fmt: skip


def wsgi(path: str) -> RequestFacts:
    """As Hypercorn hands a request to a WSGI application."""
    return WsgiFacts(
        {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "",
         "HTTP_HOST": "web", "HTTP_ACCEPT": "*/*", "HTTP_X_ROLE": "clerk"}
    )  # fmt: skip


Make = Callable[[str], RequestFacts]


class Stream(NamedTuple):
    """Requests without end: how one is made, and for which paths."""

    make: Make
    paths: Iterator[str]


def same(make: Make) -> Stream:
    """Requests of one path, each an object of its own."""
    return Stream(make, itertools.repeat("/books/1"))


def unseen(make: Make) -> Stream:
    """Requests of paths that were never asked for before."""
    return Stream(make, (f"/books/{number}" for number in itertools.count()))


def cost(judged: Policy, caller: ServiceId, requests: Stream) -> float:
    """
    Microseconds of CPU a verdict takes, over one chunk.

    Each request is made when its turn comes, as on a server, and what that costs is taken off: one
    that was made long before would make the first to look at it wait for the memory.
    """
    some = list(itertools.islice(requests.paths, CHUNK))
    decide, make = judged.decide, requests.make
    began = time.thread_time()
    for path in some:
        make(path)
    made = time.thread_time()
    for path in some:
        decide(caller, make(path))
    return (time.thread_time() - made - (made - began)) / CHUNK * 1e6


def verdicts(rounds: int) -> Iterator[Figure]:
    """What a verdict costs, by what it needs."""
    plain = made([intention("api"), intention("*")])
    paths = made([intention("api", Permissions=L7)])
    headers = made([intention("api", Permissions=WITH_HEADER)])
    cases = (
        ("ASGI, by identity (L4)", plain, CALLER, same(asgi), 2.0),
        ("ASGI, by identity, under a wildcard", plain, STRANGER, same(asgi), 2.0),
        ("ASGI, paths (L7)", paths, CALLER, same(asgi), 4.0),
        ("ASGI, paths and a header", headers, CALLER, same(asgi), 4.0),
        ("ASGI, paths, never seen before", paths, CALLER, unseen(asgi), None),
        ("WSGI, by identity (L4)", plain, CALLER, same(wsgi), 6.0),
        ("WSGI, paths (L7)", paths, CALLER, same(wsgi), 6.0),
        ("WSGI, paths, never seen before", paths, CALLER, unseen(wsgi), None),
    )
    for name, judged, caller, requests, bound in cases:
        cost(judged, caller, requests)
        taken = [cost(judged, caller, requests) for _ in range(rounds)]
        yield Figure(f"a verdict: {name}", "us", estimate(taken), _bound(bound))


def growth(rounds: int) -> Iterator[Figure]:
    """How a verdict grows with intentions about others, and with path rules of one's own."""
    for name, mine in (("L4", intention("api")), ("L7", intention("api", Permissions=L7))):
        few, many = made([mine]), made([mine, *others(MANY)])
        ratios = _ratios(rounds, many, few, lambda: same(asgi))
        yield Figure(f"1 to {MANY:,} intentions, {name}", "x", estimate(ratios), Target(1.03))
    rules = [
        {"Action": "allow", "HTTP": {"PathPrefix" if n % 2 else "PathRegex": f"/v{n}/x"}}
        for n in range(1000)
    ]
    books: Json = {"Action": "allow", "HTTP": {"PathPrefix": "/books"}}
    few = made([intention("api", Permissions=[books])])
    many = made([intention("api", Permissions=[*rules, books])])
    for name, make in (("seen before", same), ("never seen before", unseen)):
        streams = make(asgi), make(asgi)
        cost(few, CALLER, streams[0])
        cost(many, CALLER, streams[1])
        added = [
            cost(many, CALLER, streams[1]) - cost(few, CALLER, streams[0]) for _ in range(rounds)
        ]
        told = f"1 to 1,000 path rules, paths {name}: added"
        yield Figure(told, "us", estimate(added), Target(1.3))


def _ratios(rounds: int, many: Policy, few: Policy, stream: Callable[[], Stream]) -> list[float]:
    requests = stream()
    for judged in (few, many):
        cost(judged, CALLER, requests)
    ratios = []
    for number in range(rounds * 3):
        order = (few, many) if number % 2 else (many, few)
        taken = {id(one): sum(cost(one, CALLER, requests) for _ in range(5)) for one in order}
        ratios.append(taken[id(many)] / taken[id(few)])
    return ratios


def many_intentions(rounds: int) -> Iterator[Figure]:
    """Reading, compiling and keeping ten thousand; and an event loop beside it."""
    text, changed = (
        answer([*others(MANY // 2), intention("api", Permissions=rules), *others(MANY // 2, MANY)])
        for rules in (L7, L7[:2])
    )
    first, again = [], []
    for _ in range(rounds):
        service = _Service()
        first += [service.take(text)]
        again += [service.take(changed)]
    name = f"{MANY:,} intentions ({len(text) / 2**20:.1f} MiB): read and compiled, CPU"
    yield Figure(name, "ms", estimate(first), Target(200.0))
    yield Figure("the same again, with one of them changed", "ms", estimate(again), None)
    yield Figure("the same: memory kept", "MiB", _memory(text), Target(10.0))
    late = [asyncio.run(_lateness(text)) * 1e3 for _ in range(rounds)]
    yield Figure("the same: an event loop is late, at most", "ms", estimate(late), Target(30.0))
    yield from one_change(rounds)


class _Service:
    """Takes answers one after the other, as the mesh does."""

    def __init__(self) -> None:
        self._reader = MatchReader("web")
        self._policy: Policy | None = None

    def take(self, text: bytes) -> float:
        """Read an answer and compile it; milliseconds of CPU it took."""
        began = time.thread_time()
        self._policy = compile_policy(
            self._reader.read(text),
            service="web",
            trust_domain=TRUST_DOMAIN,
            default_allow=False,
            previous=self._policy,
        )
        return (time.thread_time() - began) * 1e3


def _memory(text: bytes) -> Estimate:
    gc.collect()
    tracemalloc.start()
    try:
        service = _Service()
        service.take(text)
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] / 2**20
        del service
    finally:
        tracemalloc.stop()
    return Estimate(size, size, size, 1)


async def _lateness(text: bytes) -> float:
    """Take an answer in another thread; tell how late a timer of a millisecond was at most."""
    done, worst = threading.Event(), 0.0

    def work() -> None:
        _Service().take(text)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        worst = max(worst, time.perf_counter() - began - 0.001)
    thread.join()
    return worst


def one_change(rounds: int) -> Iterator[Figure]:
    """Tables of path rules are made anew only where something changed."""
    rules = [{"Action": "allow", "HTTP": {"PathRegex": f"/v{n}/[a-z]+/x"}} for n in range(200)]
    items = [intention(f"svc-{n}", Permissions=[*rules[n:], *rules[:n]]) for n in range(40)]
    changed = [*items[:-1], intention("svc-39", Permissions=rules[:100])]
    read = [parse_match(answer(some), "web") for some in (items, changed)]

    def compiled(intentions: Any, previous: Policy | None) -> tuple[Policy, float]:
        began = time.thread_time()
        policy = compile_policy(
            intentions,
            service="web",
            trust_domain=TRUST_DOMAIN,
            default_allow=False,
            previous=previous,
        )
        return policy, time.thread_time() - began

    ratios = []
    for _ in range(rounds):
        whole, first = compiled(read[0], None)
        ratios.append(compiled(read[1], whole)[1] / first)
    name = "one of 40 intentions with 200 patterns changed, to all of them"
    yield Figure(name, "x", estimate(ratios), Target(0.25))


def hostile(rounds: int) -> Iterator[Figure]:
    """The worst of hostile requests, and how it grows with their size."""
    patterns = [
        {"Action": "deny", "HTTP": {"PathRegex": "/(a+)+b"}},
        {"Action": "deny", "HTTP": {"Header": [{"Name": "x-role", "Regex": "(a+)+b"}]}},
        {"Action": "allow", "HTTP": {"PathPrefix": "/"}},
    ]
    judged = made([intention("api", Permissions=patterns)])
    shapes: dict[str, Callable[[int], AsgiFacts]] = {
        "a header": lambda n: _facts("/", [(b"x-role", b"a" * n)]),
        "a header of commas": lambda n: _facts("/", [(b"x-role", b"a," * (n // 2))]),
        "repeated headers": lambda n: _facts("/", [(b"x-role", b"a" * 50)] * (n // 60)),
        "a path": lambda n: _facts("/" + "a" * n, []),
        "a path of dot segments": lambda n: _facts("/" + "../" * (n // 3), []),
        "a path of escapes": lambda n: _facts("/" + "%2e%2e%2f" * (n // 9), []),
    }
    for name, shape in shapes.items():
        small, large = shape(500_000), shape(1_000_000)
        _timed(judged, small)
        pairs = [(_timed(judged, small), _timed(judged, large)) for _ in range(rounds)]
        times = [two * 1e3 for _, two in pairs]
        yield Figure(f"1 MB, {name}", "ms", estimate(times), Target(50.0))
        ratios = [two / max(one, 1e-6) for one, two in pairs]
        yield Figure("  twice the size", "x", estimate(ratios), None)


def _facts(path: str, headers: Sequence[tuple[bytes, bytes]]) -> AsgiFacts:
    decoded = unquote(path)
    return AsgiFacts(
        {"method": "GET", "path": decoded, "raw_path": path.encode(), "query_string": b"",
         "headers": [(b"host", b"web"), *headers]}
    )  # fmt: skip


def _timed(judged: Policy, facts: AsgiFacts) -> float:
    began = time.thread_time()
    judged.decide(CALLER, facts)
    return time.thread_time() - began


def beside_envoy(requests: int) -> Iterator[Figure]:
    """The real Envoy, with 1 and with ten thousand intentions: median of a request."""
    chains = {}
    for name, count in (("few", 0), ("many", MANY)):
        items = [*others(count), {**intention("zzz"), "SourceName": "zzz-api"}]
        rules = rbac.http_filter(items, False, TRUST_DOMAIN)
        chains[name] = [envoy.connection_manager([rules], {})]
    caller = f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/zzz-api"
    asked = b"GET /books HTTP/1.1\r\nHost: web\r\n\r\n"
    taken: dict[str, list[float]] = {"few": [], "many": []}
    with envoy.running(chains) as running:
        connections = {name: running.connect(name, caller) for name in chains}
        try:
            for _ in range(requests):
                for name, connection in connections.items():
                    began = time.perf_counter()
                    if connection.ask(asked).status != 200:
                        raise RuntimeError("Envoy refused what it was to allow")
                    taken[name].append(time.perf_counter() - began)
        finally:
            for connection in connections.values():
                connection.close()
    half = {name: median(values) for name, values in taken.items()}
    ratios = [many / few for few, many in zip(taken["few"], taken["many"], strict=True)]
    name = f"Envoy, 1 to {MANY:,} intentions: {half['many'] * 1e3:.1f} ms a request, caller last"
    yield Figure(name, "x", estimate(ratios), None)


def _bound(value: float | None) -> Target | None:
    return None if value is None else Target(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="bench.decide", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="see that it works")
    quick = parser.parse_args(arguments).quick
    rounds = 3 if quick else 15
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    missed = 0
    for section in (
        verdicts(rounds * 2),
        growth(rounds),
        many_intentions(rounds),
        hostile(rounds),
        beside_envoy(20 if quick else 200),
    ):
        print()
        for figure in section:
            missed += _print(figure)
    return 1 if missed else 0


def _print(figure: Figure) -> bool:
    found, target = figure.estimate, figure.target
    met = target is None or target.met(found)
    told = "" if target is None else f"   {'met' if met else 'MISSED'} (target {target})"
    interval = f"({found.low:.2f}-{found.high:.2f})" if found.rounds > 1 else ""
    print(f"  {figure.name:62}{found.median:9.2f} {figure.unit:4}{interval:17}{told}", flush=True)
    return not met


if __name__ == "__main__":
    sys.exit(main())
