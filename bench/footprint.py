"""
What the mesh adds to a worker: private memory, and time to the first answer.

Owns servers of its own, started in turns with and without the mesh. Two workers each for memory,
so that pages of files that any second worker shares do not count. Servers find what a service has
installed (`NOT_NEEDED` left out), with its modules compiled.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from . import load
from .agent import CALLER
from .figures import Figure, Target
from .flips import Caller
from .processes import private_bytes
from .setting import PATH, START_SECONDS, Kind, Server, SettingError, Stage
from .stats import estimate

KINDS: tuple[Kind, ...] = ("limit", "mesh")
FRAMEWORK = "starlette"
MEBIBYTE = 1024 * 1024


def memory(stage: Stage, program: Path, starts: int, told: Callable[[str], None]) -> list[Figure]:
    """Measure the private memory of a worker that has served a while, with and without."""
    stage.lean = True
    added = []
    for number in range(starts):
        used = {kind: _private(stage, program, kind) for kind in KINDS}
        added.append((used["mesh"] - used["limit"]) / MEBIBYTE)
        told(f"memory, start {number + 1} of {starts}")
    note = "Starlette; two workers, each after 1000 requests on 200 connections"
    name = "private memory added per worker"
    return [Figure(name, "MiB", estimate(added), Target(12.0), note)]


def start_up(stage: Stage, starts: int, told: Callable[[str], None]) -> list[Figure]:
    """Measure the time from the command to the first answer, with and without."""
    stage.lean = True
    for kind in KINDS:
        _first_answer(stage, kind)  # compiles what is not compiled yet
    added = []
    for number in range(starts):
        order = KINDS if number % 2 else KINDS[::-1]
        took = {kind: _first_answer(stage, kind) for kind in order}
        added.append((took["mesh"] - took["limit"]) * 1000)
        told(f"start-up, {number + 1} of {starts}")
    note = "import of the package, agent asked, leaf and policy there"
    return [Figure("start-up time added", "ms", estimate(added), Target(100.0), note)]


def _private(stage: Stage, program: Path, kind: Kind) -> float:
    server = _start(stage, kind, workers=2)
    try:
        stage.check(server)
        identity = stage.identity(CALLER)
        load.run(program, load.Load(server.port, PATH, 8, 0, 200, new=True), identity)
        load.run(program, load.Load(server.port, PATH, 16, 0, 800), identity)
        workers = server.processes[0].workers()
        if len(workers) != 2:
            raise SettingError(f"{len(workers)} workers, not 2")
        return mean(private_bytes(pid) for pid in workers)
    finally:
        server.close()


def _first_answer(stage: Stage, kind: Kind) -> float:
    began = time.perf_counter()
    server = _start(stage, kind, workers=1)
    try:
        _wait_bound(server)
        caller = Caller(stage, server)
        try:
            if (status := caller.status()) != 200:
                raise SettingError(f"the first answer is {status}")
        finally:
            caller.close()
        return time.perf_counter() - began
    finally:
        server.close()


def _start(stage: Stage, kind: Kind, workers: int) -> Server:
    start = stage.mesh if kind == "mesh" else stage.limit
    return start(FRAMEWORK, workers=workers)


def _wait_bound(server: Server) -> None:
    """Wait until connections are taken: from then on the socket itself makes the caller wait."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", server.port)) == 0:
                return
        time.sleep(0.002)
    raise SettingError(f"{server.kind} does not listen:\n{server.processes[0].log()}")
