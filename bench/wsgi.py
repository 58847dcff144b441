"""
The WSGI bridge beside Hypercorn's own wrapper: ``python -m bench.wsgi [--quick]``.

Owns two servers of the same small Flask application over plain HTTP, one of each, and interleaved
pairs of runs. Ratios are taken inside a pair; above 1 the bridge is faster, or needs more CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import shutil
import sys
import tempfile
import time
from pathlib import Path

from . import load
from .figures import Target
from .processes import Process, Processes, cpu_seconds
from .setting import APPS, PATH, ROOT, START_SECONDS, SettingError, free_port
from .stats import estimate

CACHE = ROOT / ".cache" / "bench"
APPLICATIONS = {"wrapper": "flask_app", "bridge": "flask_bridge"}
WORKERS = ("asyncio", "uvloop")
CONCURRENT = {1: 1500, 32: 3000}
"""Requests of one run, by the number of connections."""

FASTER, CHEAPER = Target(1.0, at_least=True), Target(1.0)

Pair = dict[str, tuple[float, float]]
"""Requests per second and microseconds of CPU per request, by server."""


def start(worker: str, folder: Path, started: Processes) -> dict[str, tuple[int, Process]]:
    """Start both servers."""
    hypercorn = shutil.which("hypercorn", path=str(Path(sys.executable).parent))
    if hypercorn is None:
        raise SettingError("no program 'hypercorn': make install")
    servers = {}
    for name, module in APPLICATIONS.items():
        port = free_port()
        command = [hypercorn, "-k", worker, "-b", f"127.0.0.1:{port}", f"{APPS / module}.py:app"]
        process = started.start(f"{name}-{worker}", command, folder)
        servers[name] = (port, process)
        wait(port, process)
    return servers


def wait(port: int, process: Process) -> None:
    """
    Wait until a server answers.

    Raises:
        SettingError: it does not.
    """
    deadline = time.monotonic() + START_SECONDS
    while process.alive and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", PATH)
            if connection.getresponse().status == 200:
                process.settle()
                return
        time.sleep(0.02)
    raise SettingError(f"{process.name} did not start:\n{process.log()}")


def one(
    program: Path, server: tuple[int, Process], concurrent: int, count: int
) -> tuple[float, float]:
    """One run."""
    port, process = server
    pids, before = process.pids(), []
    run = load.Load(port, PATH, concurrent, count // 10, count)
    told = load.run(program, run, None, begin=lambda client: before.append(cpu_seconds(pids)))
    return told["rps"], (cpu_seconds(pids) - before[0]) / count * 1e6


def measure(
    program: Path, servers: dict[str, tuple[int, Process]], rounds: int, share: float
) -> dict[int, list[Pair]]:
    """Pairs of runs, in turns; which is first changes with each."""
    pairs: dict[int, list[Pair]] = {concurrent: [] for concurrent in CONCURRENT}
    for number in range(rounds):
        names = list(servers)[:: -1 if number % 2 else 1]
        for concurrent, count in CONCURRENT.items():
            size = max(100, int(count * share))
            pairs[concurrent].append(
                {name: one(program, servers[name], concurrent, size) for name in names}
            )
    return pairs


def tell(worker: str, pairs: dict[int, list[Pair]]) -> None:
    """Print the ratios."""
    for concurrent, taken in pairs.items():
        for field, what, target in ((0, "requests/s", FASTER), (1, "CPU per request", CHEAPER)):
            ratio = estimate([pair["bridge"][field] / pair["wrapper"][field] for pair in taken])
            met = "met" if target.met(ratio) else "missed"
            print(
                f"  {met:<8} {worker}, {concurrent} at once: {what}, bridge / wrapper  "
                f"{ratio.median:.2f}  ({ratio.low:.2f} to {ratio.high:.2f})  {target}"
            )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="see that it works: 2 small rounds")
    options = parser.parse_args()
    rounds, share = (2, 0.1) if options.quick else (options.rounds, 1.0)
    try:
        program = load.build(CACHE)
        with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name, Processes() as started:
            for worker in WORKERS:
                servers = start(worker, Path(name), started)
                tell(worker, measure(program, servers, rounds, share))
                for _, process in servers.values():
                    process.close()
    except (load.LoadError, SettingError) as error:
        print(f"bench.wsgi: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
