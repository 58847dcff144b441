"""R15: sync and async, threads and loops in one process; cross-talk is in `interop`."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mesh_middleware import Mesh
from mesh_middleware.dev import DevAgent

from ..support.servers import PATIENCE, clean_environment

PROGRAM = """
import asyncio, sys, threading
import mesh_middleware

agent, loop = sys.argv[1:]
mesh = mesh_middleware.Mesh("tax", agent=agent).start()
assert mesh.ready(20)
client = mesh_middleware.Client(mesh=mesh)


async def work():
    async with mesh_middleware.AsyncClient(mesh=mesh) as calls:
        try:
            await calls.get("https://nobody/")
        except Exception as error:
            print(type(error).__name__)


def in_thread():
    try:
        client.get("https://nobody/")
    except Exception as error:
        print(type(error).__name__)


thread = threading.Thread(target=in_thread)
thread.start()
if loop == "trio":
    import trio
    trio.run(work)
elif loop == "uvloop":
    import uvloop
    uvloop.run(work())
else:
    asyncio.run(work())
thread.join()
print("end", flush=True)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_r15_a_process_that_forgets_to_close_ends(loop: str, agent: DevAgent) -> None:
    """Watcher, threads and a loop at once, nothing closed: the process ends, by itself, with 0."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, agent.url, loop],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["NoHealthyInstanceError"] * 2 + ["end"]


def test_r15_many_threads_start_wait_and_close_one_mesh(agent: DevAgent) -> None:
    """Started once, ready for all, closed once; whoever comes second finds it done."""
    mesh = Mesh("tax", agent=agent.url)
    with ThreadPoolExecutor(16) as pool:
        assert len({id(started) for started in pool.map(lambda _: mesh.start(), range(32))}) == 1
        assert all(pool.map(lambda _: mesh.ready(PATIENCE), range(32)))
        list(pool.map(lambda _: mesh.close(), range(32)))
    assert not mesh.running
