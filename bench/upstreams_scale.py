"""
Many upstreams in one process: ``python -m bench.upstreams_scale [--count N] [--consul PATH]``.

Owns an agent (the dev agent, or a private real Consul) with as many services, each with two
instances, and a mesh that watches them all. Tells memory, threads, open files, and how long it
takes until one upstream, and until all of them, can be called.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from mesh_middleware import Mesh

MEBIBYTE = 1024 * 1024
PATIENCE = 180.0


@contextmanager
def dev_agent() -> Iterator[str]:
    """The dev agent, in a process of its own."""
    code = (
        "import sys; from mesh_middleware.dev import DevAgent\n"
        "with DevAgent() as agent: print(agent.url, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


@contextmanager
def real_consul(binary: str, hcl: str) -> Iterator[str]:
    """A private real Consul."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support.consul import RealConsul

    with RealConsul(binary, hcl=hcl) as consul:
        yield consul.url


def register(agent: str, count: int) -> None:
    """Register the services, two instances each."""
    with httpx.Client(base_url=agent, trust_env=False, timeout=30) as client:
        for number in range(count):
            for instance in (1, 2):
                body = {
                    "Name": f"svc-{number}", "ID": f"svc-{number}-{instance}",
                    "Address": "127.0.0.1", "Port": 8000 + instance, "Connect": {"Native": True},
                    "Meta": {"version": str(instance)},
                }  # fmt: skip
                client.put("/v1/agent/service/register", json=body).raise_for_status()


def memory() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


def measure(agent: str, count: int) -> dict[str, Any]:
    """Watch *count* upstreams and tell what it took."""
    with Mesh("order", agent=agent, register=False, plugins=()) as mesh:
        assert mesh.wait_for(lambda snapshot: snapshot.joined, PATIENCE), mesh.status()
        began = time.perf_counter()
        mesh.upstream("svc-0").wait(PATIENCE)
        first = time.perf_counter() - began
        before, threads = memory(), threading.active_count()
        began = time.perf_counter()
        upstreams = [mesh.upstream(f"svc-{number}") for number in range(count)]
        told = 0
        for upstream in upstreams:
            told += len(upstream.wait(PATIENCE)) == 2
        every = time.perf_counter() - began
        began = time.perf_counter()
        found = {
            "upstreams": told,
            "ms until the first can be called": round(first * 1000, 1),
            "s until all can be called": round(every, 2),
            "KiB each": round((memory() - before) * 1024 / count, 1),
            "MiB in all": round(memory(), 1),
            "threads before": threads,
            "threads after": threading.active_count(),
            "open files": len(os.listdir("/proc/self/fd")),
            "troubles": len(mesh.status()["troubles"]),
        }
    return found


def main() -> None:
    """Run once and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--consul", default="", help="binary of a real Consul")
    parser.add_argument("--hcl", default="", help="its configuration")
    parser.add_argument("--quick", action="store_true", help="see that it works: 50 of them")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    serving = real_consul(options.consul, options.hcl) if options.consul else dev_agent()
    with serving as agent:
        count = 50 if options.quick else options.count
        register(agent, count)
        print(json.dumps(measure(agent, count), indent=2))


if __name__ == "__main__":
    main()
