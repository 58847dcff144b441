"""
``python -m bench.client``: what a call costs the caller, in one run.

Owns the comparison of three ways to call the same application: `ours`, our client; `stock`, httpx
with its own transport and mutual TLS, straight to the same server; `e2`, what a user has today:
httpx, plain, to an Envoy of one's own, mutual TLS to an Envoy in front of the application, with the
same 20 intentions. They take turns inside every round, and a ratio is formed inside a round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from mesh_middleware import Mesh
from mesh_middleware.httpx import AsyncClient, Client, h1
from mesh_middleware.identity import ServiceId
from mesh_middleware.resolve import Endpoint, StaticResolver

from . import machine
from .agent import CALLER, SERVICE
from .figures import Target
from .processes import Process, Processes, cpu_seconds
from .setting import PATH, SettingError, Stage, free_port
from .stats import estimate, quantile

WAYS = ("ours", "stock", "e2")
WARM_UP = 40


@dataclass(frozen=True, slots=True)
class Mode:
    """
    How the calls are made.

    Args:
        name: as it is printed.
        threads: that call, each one call after the other; 0 means tasks of one event loop.
        tasks: that call, when there are no threads.
        count: calls of one run.
        http2: whether HTTP/2 is offered.
    """

    name: str
    threads: int
    tasks: int
    count: int
    http2: bool = False

    @property
    def concurrent(self) -> int:
        """Calls at the same time."""
        return self.threads or self.tasks


MODES = (
    Mode("sync, 1", 1, 0, 1000),
    Mode("sync, 16 threads", 16, 0, 1600),
    Mode("async, 1", 0, 1, 1000),
    Mode("async, 16", 0, 16, 1600),
    Mode("async, 32", 0, 32, 1600),
    Mode("sync, 1, HTTP/2", 1, 0, 300, http2=True),
    # Fewer than 1000 with those to warm up: Hypercorn ends the connection then, and httpx fails.
    Mode("async, 16, HTTP/2", 0, 16, 320, http2=True),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """
    What one run gave.

    Args:
        rate: calls per second.
        p50: median latency in microseconds.
        p99: latency that one of a hundred exceeds.
        client: microseconds of CPU per call in the caller.
        total: the same with proxies and server.
    """

    rate: float
    p50: float
    p99: float
    client: float
    total: float


# metric, of a sample; against; targets by mode. Source: issue 5 and reference/performance.md, 7-12.
TARGETS: Mapping[tuple[str, str], Mapping[str, Target]] = {
    ("client", "stock"): {"async, 1": Target(0.35), "async, 16": Target(0.13)},
    ("p50", "e2"): {"sync, 1": Target(0.45), "async, 1": Target(0.38), "async, 16": Target(0.25)},
    ("rate", "e2"): {"async, 16": Target(6, at_least=True)},
    ("p99", "e2"): {"async, 16": Target(0.08)},
    ("total", "e2"): {"async, 1": Target(0.40), "async, 16": Target(0.20)},
}
NAMES = {
    "client": "CPU per call of the caller",
    "total": "CPU per call of all",
    "p50": "median latency",
    "p99": "99th percentile",
    "rate": "calls per second",
}


@dataclass(frozen=True, slots=True)
class Way:
    """
    One way to call.

    Args:
        url: that is called.
        options: of the client.
        kinds: sync and async client.
        pids: processes on the other side.
        http2_url: called instead where HTTP/2 is offered; empty is the same.
    """

    url: str
    options: Mapping[str, Any]
    kinds: tuple[Callable[..., Any], Callable[..., Any]]
    pids: Sequence[int]
    http2_url: str = ""

    def take(self, mode: Mode) -> tuple[str, Mapping[str, Any]]:
        """What is called, and the client's options."""
        if not mode.http2:
            return self.url, self.options
        return self.http2_url or self.url, {**self.options, "http2": True}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and tell how it went: 0 when everything could be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.client")
    parser.add_argument("--rounds", type=int, default=None, help="interleaved rounds (11)")
    parser.add_argument("--quick", action="store_true", help="see that it works: 2 small rounds")
    parser.add_argument("--reader", choices=("httptools", "h11"), default="httptools")
    options = parser.parse_args(arguments)
    if options.reader == "h11":
        vars(h1)["httptools"] = None
    rounds = options.rounds or (2 if options.quick else 11)
    try:
        with tempfile.TemporaryDirectory(prefix="mesh-bench-") as folder, Processes() as started:
            stage = Stage.open(Path(folder), started)
            with _mesh(stage) as mesh:
                ways = _ways(stage, mesh)
                taken = [_round(ways, number, options.quick) for number in range(rounds)]
    except (SettingError, httpx.HTTPError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print("\n".join(_report(taken, options.reader)))
    return 0


def _mesh(stage: Stage) -> Mesh:
    mesh = Mesh(CALLER, agent=stage.agent, register=False).start()
    if not mesh.wait_for(lambda snapshot: snapshot.joined, 20):
        raise SettingError(f"the caller did not join: {mesh.status()}")
    return mesh


def _ways(stage: Stage, mesh: Mesh) -> dict[str, Way]:
    direct = stage.mesh("starlette")
    backend = stage.plain("starlette")
    inbound = stage.envoy(backend, threads=2)
    for server in (direct, inbound):
        stage.check(server)
    port, outbound = _outbound(stage, inbound.port)
    port2, outbound2 = _outbound(stage, inbound.port, http2=True)
    expected = ServiceId(stage.trust_domain, "default", "dc1", SERVICE)
    resolver = StaticResolver({SERVICE: [Endpoint("127.0.0.1", direct.port, expected)]})
    stock = (httpx.Client, httpx.AsyncClient)
    verify = {"verify": stage.context(CALLER), "trust_env": False}
    ours = {"mesh": mesh, "resolver": resolver}
    return {
        "ours": Way(f"https://{SERVICE}{PATH}", ours, (Client, AsyncClient), direct.pids),
        "stock": Way(f"https://127.0.0.1:{direct.port}{PATH}", verify, stock, direct.pids),
        "e2": Way(
            f"http://127.0.0.1:{port}{PATH}",
            {"trust_env": False},
            stock,
            [*inbound.pids, *outbound.pids(), *outbound2.pids()],
            f"http://127.0.0.1:{port2}{PATH}",
        ),
    }


def _outbound(stage: Stage, upstream: int, *, http2: bool = False) -> tuple[int, Process]:
    """Start the caller's own Envoy: plain in, mutual TLS out."""
    port = free_port()
    name = "outbound-2" if http2 else "outbound"
    file = stage.folder / f"{name}.json"
    file.write_text(json.dumps(_outbound_config(stage, port, upstream, http2=http2)))
    command = [
        str(Path(sys.executable).with_name("envoy")),
        "-c",
        str(file),
        "-l",
        "error",
        "--concurrency",
        "2",
    ]
    process = stage.started.start(name, [*command, "--disable-hot-restart"], stage.folder)
    deadline = time.monotonic() + 20
    with httpx.Client(trust_env=False) as client:
        while True:
            try:
                if client.get(f"http://127.0.0.1:{port}{PATH}").status_code == 200:
                    return port, process
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline or not process.alive:
                raise SettingError(f"the caller's Envoy does not answer:\n{process.log()}")
            time.sleep(0.05)


def _outbound_config(stage: Stage, port: int, upstream: int, *, http2: bool) -> dict[str, Any]:
    types = "type.googleapis.com/envoy.extensions"
    who = stage.identity(CALLER)
    tls = {
        "@type": f"{types}.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(who.certificate)},
                    "private_key": {"filename": str(who.key)},
                }
            ],
            "validation_context": {"trusted_ca": {"filename": str(stage.folder / "roots.pem")}},
        },
    }
    router = {"@type": f"{types}.filters.http.router.v3.Router"}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}
    manager = {
        "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "outbound",
        "route_config": {
            "virtual_hosts": [{"name": "outbound", "domains": ["*"], "routes": [route]}]
        },
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    chain = {
        "filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        ]
    }
    endpoint = {"endpoint": {"address": _address(upstream)}}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{types}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {
                    "http2_protocol_options" if http2 else "http_protocol_options": {}
                },
            }
        },
    }
    listener = {"name": "outbound", "address": _address(port), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _round(ways: Mapping[str, Way], number: int, quick: bool) -> dict[tuple[str, str], Sample]:
    found = {}
    for mode in MODES:
        turn = number % len(WAYS)
        for name in (*WAYS[turn:], *WAYS[:turn]):
            count = mode.count // 10 if quick else mode.count
            found[mode.name, name] = _measure(ways[name], mode, count)
    print(f"  round {number + 1}", file=sys.stderr, flush=True)
    return found


def _measure(way: Way, mode: Mode, count: int) -> Sample:
    each = count // mode.concurrent
    if mode.threads:
        return _measure_threads(way, mode, each)
    return asyncio.run(_measure_tasks(way, mode, each))


class _Clock:
    """Reads what a run used."""

    def __init__(self, way: Way) -> None:
        self._pids = way.pids
        self._others = cpu_seconds(self._pids)
        self._own, self._began = time.process_time(), time.perf_counter()

    def sample(self, latencies: list[float]) -> Sample:
        took, own = time.perf_counter() - self._began, time.process_time() - self._own
        others, count = cpu_seconds(self._pids) - self._others, len(latencies)
        return Sample(
            rate=count / took,
            p50=median(latencies) * 1e6,
            p99=quantile(latencies, 0.99) * 1e6,
            client=own / count * 1e6,
            total=(own + others) / count * 1e6,
        )


def _measure_threads(way: Way, mode: Mode, each: int) -> Sample:
    url, options = way.take(mode)
    with way.kinds[0](**options) as client, ThreadPoolExecutor(mode.threads) as pool:

        def call(count: int) -> list[float]:
            found = []
            for _ in range(count):
                began = time.perf_counter()
                response = client.get(url)
                found.append(time.perf_counter() - began)
                response.raise_for_status()
            return found

        list(pool.map(call, [WARM_UP] * mode.threads))
        clock = _Clock(way)
        runs = list(pool.map(call, [each] * mode.threads))
        return clock.sample([one for run in runs for one in run])


async def _measure_tasks(way: Way, mode: Mode, each: int) -> Sample:
    url, options = way.take(mode)
    async with way.kinds[1](**options) as client:

        async def call(count: int) -> list[float]:
            found = []
            for _ in range(count):
                began = time.perf_counter()
                response = await client.get(url)
                found.append(time.perf_counter() - began)
                response.raise_for_status()
            return found

        await _all(call, WARM_UP, mode.tasks)
        clock = _Clock(way)
        runs = await _all(call, each, mode.tasks)
        return clock.sample([one for run in runs for one in run])


async def _all(
    call: Callable[[int], Awaitable[list[float]]], count: int, tasks: int
) -> list[list[float]]:
    return list(await asyncio.gather(*(call(count) for _ in range(tasks))))


def _report(taken: Sequence[Mapping[tuple[str, str], Sample]], reader: str) -> list[str]:
    described = machine.describe()
    lines = [
        ", ".join(f"{name} {value}" for name, value in described.items()),
        "",
        f"ours    our client, answers read by {reader}, to the application with our door",
        "stock   httpx with its own transport and mutual TLS, to the same server",
        "e2      httpx, plain, through a pair of Envoys with mutual TLS between them",
        "",
        f"Medians over {len(taken)} interleaved rounds, ratios with their 95 % interval.",
    ]
    for mode in MODES:
        lines += [
            "",
            f"{mode.name:31}{'ours':>8}{'stock':>8}{'e2':>8}   ours : stock        ours : e2",
        ]
        lines += [_row(taken, mode.name, metric) for metric in NAMES]
    return [*lines, "", *_targets(taken)]


def _row(taken: Sequence[Mapping[tuple[str, str], Sample]], mode: str, metric: str) -> str:
    values = {way: median(getattr(one[mode, way], metric) for one in taken) for way in WAYS}
    unit = "/s" if metric == "rate" else "us"
    amounts = "".join(f"{values[way]:8.0f}" for way in WAYS)
    ratios = "".join(f"{_ratio(taken, mode, metric, other):21}" for other in ("stock", "e2"))
    return f"  {NAMES[metric] + ', ' + unit:29}{amounts}   {ratios}".rstrip()


def _ratio(
    taken: Sequence[Mapping[tuple[str, str], Sample]], mode: str, metric: str, other: str
) -> str:
    found = estimate(_ratios(taken, mode, metric, other))
    return f"{found.median:.2f} ({found.low:.2f}-{found.high:.2f})"


def _ratios(
    taken: Sequence[Mapping[tuple[str, str], Sample]], mode: str, metric: str, other: str
) -> list[float]:
    return [getattr(one[mode, "ours"], metric) / getattr(one[mode, other], metric) for one in taken]


def _targets(taken: Sequence[Mapping[tuple[str, str], Sample]]) -> list[str]:
    lines = []
    for (metric, other), by_mode in TARGETS.items():
        for mode, target in by_mode.items():
            found = estimate(_ratios(taken, mode, metric, other))
            verdict = "met" if target.met(found) else "missed"
            what = f"{NAMES[metric]}, {mode}, to {other}"
            lines.append(f"{verdict:7} {what:48} {found.median:.3f}  (target {target})")
    return lines


if __name__ == "__main__":
    sys.exit(main())
