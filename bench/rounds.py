"""
The interleaved rounds: every setting under every load, turn by turn.

Owns the loads and their sizes, the order, and what one run is turned into. Ratios are taken inside
a round, between runs a few seconds apart, so that a machine whose speed drifts, or that has other
work, bends both sides of a ratio alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import load
from .agent import CALLER
from .processes import busy_seconds, cpu_seconds, pin
from .setting import KINDS, PATH, Kind, Server, Stage

Measure = Literal["many", "one", "new", "core", "core_one"]
FRAMEWORKS = ("starlette", "flask")
ENVOY_THREADS = 2

PINNED: frozenset[Measure] = frozenset({"core", "core_one"})
"""Measures with the server's side on one core, and the load client on another."""

TAKES = 5
"""Times that all servers are started in one benchmark: where a process happens to lie in memory
makes it some percent faster or slower for as long as it lives, which no number of rounds shows."""

BUSY_CORES = 0.25
"""Foreign work, in cores, above which a run counts as disturbed."""


@dataclass(frozen=True, slots=True)
class Size:
    """
    How much load one run is.

    Args:
        concurrent: connections.
        count: requests that count; warm-up is a tenth of it.
        new: whether each request gets a connection of its own.
    """

    concurrent: int
    count: int
    new: bool = False


SIZES: Mapping[str, Mapping[Measure, Size]] = {
    "starlette": {
        "many": Size(32, 5000),
        "one": Size(1, 4000),
        "new": Size(8, 500, True),
        "core": Size(32, 4000),
        "core_one": Size(32, 4000),
    },
    "flask": {
        "many": Size(32, 2000),
        "one": Size(1, 1500),
        "new": Size(8, 400, True),
    },
}


@dataclass(frozen=True, slots=True)
class Sample:
    """
    What one run gave.

    Args:
        rate: requests, or new connections, per second.
        p50: median latency in microseconds.
        p99: latency that one of a hundred exceeds.
        cpu: microseconds of CPU per request, of all processes of the server's side.
        foreign: cores that other programs used meanwhile.
    """

    rate: float
    p50: float
    p99: float
    cpu: float
    foreign: float


Key = tuple[str, Measure, Kind]
Samples = dict[Key, list[Sample]]


@dataclass(frozen=True, slots=True)
class Cast:
    """
    The servers of one framework.

    Args:
        framework: of the application.
        servers: for all cores.
        lone: the same, where Envoy has one worker thread.
    """

    framework: str
    servers: Mapping[Kind, Server]
    lone: Mapping[Kind, Server]

    def close(self) -> None:
        """End all of them."""
        for server in (*self.lone.values(), *self.servers.values()):
            server.close()


def start(stage: Stage, framework: str) -> Cast:
    """Start every setting of an application, and check each."""
    backend = stage.plain(framework)
    servers: dict[Kind, Server] = {
        "limit": stage.limit(framework),
        "mesh": stage.mesh(framework),
        "envoy": stage.envoy(backend, threads=ENVOY_THREADS),
    }
    lone = dict(servers)
    if "core_one" in SIZES[framework]:
        lone["envoy"] = stage.envoy(backend, threads=1)
    for server in (*servers.values(), lone["envoy"]):
        stage.check(server)
    return Cast(framework, servers, lone)


class Rounds:
    """
    Runs the rounds.

    Args:
        stage: knows the caller.
        program: the load client.
        share: of the usual number of requests, for a quick run.
        told: called with a word on what is being done.
    """

    def __init__(
        self,
        stage: Stage,
        program: Path,
        *,
        share: float = 1.0,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._stage = stage
        self._identity = stage.identity(CALLER)
        self._program = program
        self._casts: list[Cast] = []
        self._share = share
        self._told = told
        self.samples: Samples = {}

    def run(self, rounds: int) -> Samples:
        """Run *rounds* rounds, on servers that are started anew `TAKES` times."""
        began, done = time.monotonic(), 0
        for take in range(min(TAKES, rounds)):
            with self._started():
                for _ in range(take, rounds, TAKES):
                    self._round(done)
                    done += 1
                    left = (time.monotonic() - began) / done * (rounds - done)
                    self._told(f"round {done} of {rounds}, {left:.0f} s to go")
        return self.samples

    @contextmanager
    def _started(self) -> Iterator[None]:
        with ExitStack() as stack:
            self._casts = []
            for framework in FRAMEWORKS:
                self._told(f"starting {framework}: limit, mesh and Envoy")
                self._casts.append(start(self._stage, framework))
                stack.callback(self._casts[-1].close)
            yield

    def _round(self, number: int) -> None:
        for cast, measure in self._steps():
            for kind in _order(number):
                sample = self._measure(cast, measure, kind)
                self.samples.setdefault((cast.framework, measure, kind), []).append(sample)

    def _steps(self) -> Iterator[tuple[Cast, Measure]]:
        for cast in self._casts:
            for measure in SIZES[cast.framework]:
                if measure not in PINNED or len(cores()) > 1:
                    yield cast, measure

    def _measure(self, cast: Cast, measure: Measure, kind: Kind) -> Sample:
        size = SIZES[cast.framework][measure]
        count = max(50, int(size.count * self._share))
        server = (cast.lone if measure == "core_one" else cast.servers)[kind]
        run = load.Load(
            server.port, PATH, size.concurrent, max(20, count // 10), count, new=size.new
        )
        if measure not in PINNED:
            return self._sample(run, server, lambda client: None)
        all_cores = cores()
        ours, theirs = sorted(all_cores)[:2]
        pin(server.pids, {ours})
        try:
            return self._sample(run, server, lambda client: pin([client], {theirs}))
        finally:
            pin(server.pids, all_cores)

    def _sample(self, run: load.Load, server: Server, placed: Callable[[int], None]) -> Sample:
        pids = server.pids
        before: list[float] = []

        def begin(client: int) -> None:
            placed(client)
            before.extend((busy_seconds(), cpu_seconds(pids)))

        told = load.run(self._program, run, self._identity, begin=begin)
        cpu = cpu_seconds(pids) - before[1]
        foreign = busy_seconds() - before[0] - cpu - told["client_cpu_s"]
        return Sample(
            rate=told["rps"],
            p50=told["p50_us"],
            p99=told["p99_us"],
            cpu=cpu / run.count * 1e6,
            foreign=max(0.0, foreign / told["seconds"]),
        )


def cores() -> set[int]:
    """Cores that this program may use."""
    return os.sched_getaffinity(0)


def _order(number: int) -> list[Kind]:
    """The settings in another order each round: none is always the one after the pause."""
    start = number % len(KINDS)
    turned = [*KINDS[start:], *KINDS[:start]]
    return turned[::-1] if number // len(KINDS) % 2 else turned
