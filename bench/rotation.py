"""
How late an event loop is while leaf and roots change in the same process.

Owns a loop that does nothing but turn, beside a mesh that follows the agent. What stops it is what
the watcher's thread does without letting go of the interpreter. ``python -m bench.rotation`` runs
it alone.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from mesh_middleware import Mesh
from mesh_middleware.config import load_settings

from .agent import SERVICE
from .figures import Figure, Target
from .processes import Processes
from .setting import SettingError, Stage
from .stats import estimate

STEPS = ("root", "leaf", "prune")
AFTER = 0.05
"""Seconds that are watched beyond each."""
LONGEST = 10.0


def measure(stage: Stage, count: int) -> list[Figure]:
    """
    Rotate *count* times, and take the longest turn of the loop each time.

    Raises:
        SettingError: a rotation was not followed.
    """
    said = {"service": SERVICE, "agent": stage.agent, "register": False, "plugins": False}
    with Mesh(settings=load_settings(said)) as mesh:
        if not mesh.ready(LONGEST):
            raise SettingError(f"the mesh is not ready: {mesh.status()['troubles']}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            turns = [runner.run(_rotate(stage, mesh)) * 1000 for _ in range(count + 1)][1:]
            still = [runner.run(_turn(AFTER)) * 1000 for _ in range(count)]
    note = f"{estimate(still).median:.2f} ms where nothing changes"
    name = "an event loop is late while leaf and roots rotate"
    return [Figure(name, "ms", estimate(turns), Target(2.0), note)]


async def _rotate(stage: Stage, mesh: Mesh) -> float:
    """As Consul does it: a new root, later a leaf under it, in the end the old root is dropped."""
    worst = 0.0
    for step in STEPS:
        before, began = mesh.generation, time.perf_counter()
        stage.agent_process.tell(step)
        while mesh.generation == before:
            if time.perf_counter() - began > LONGEST:
                raise SettingError(f"no new {step} within {LONGEST:g} s")
            worst = max(worst, await _turn(0.001))
        worst = max(worst, await _turn(AFTER))
    return worst


async def _turn(seconds: float) -> float:
    """Turn the loop that long; the longest time of one turn."""
    last = time.perf_counter()
    until, worst = last + seconds, 0.0
    while last < until:
        await asyncio.sleep(0)
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    return worst


def main() -> None:
    """Measure the rotations alone."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as folder, Processes() as started:
        for figure in measure(Stage.open(Path(folder), started), count):
            found = figure.estimate
            print(f"{figure.name:55} {found.median:7.2f} ({found.low:.2f}-{found.high:.2f})"
                  f" {figure.target}; {figure.note}")  # fmt: skip


if __name__ == "__main__":
    main()
