"""First calls that come together, of many threads, share what later ones share."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from mesh_middleware.httpx import Client
from mesh_middleware.resolve import Endpoint, Upstream

from .support import PATIENCE, Authority, StaticMesh, StaticWatch, answering, serving

THREADS = 4


class _Crowd(StaticMesh):
    """A mesh whose upstreams are asked for by all threads at once, before any has its answer."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(authority)
        self.barrier = threading.Barrier(THREADS)

    def watch_upstream(self, upstream: Upstream | str) -> StaticWatch:
        watch = super().watch_upstream(upstream)
        if not isinstance(upstream, str):
            self.barrier.wait(PATIENCE)
        return watch


@pytest.fixture
def _restless() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_restless")
def test_first_calls_of_many_threads_share_the_limit(authority: Authority) -> None:
    """Threads that call an upstream first, all at once, keep within its one connection, and find
    it again."""
    mesh = _Crowd(authority)
    limits = httpx.Limits(max_connections=1)
    with serving(authority, answering()) as server, ThreadPoolExecutor(THREADS) as threads:
        mesh.tell("tax", server.endpoint("tax"))
        for round_ in range(1, 11):
            with Client(mesh, limits=limits) as client:
                calls = [threads.submit(client.get, "https://tax/") for _ in range(THREADS)]
                assert [call.result(PATIENCE).text for call in calls] == ["ok"] * THREADS
            assert server.connections == round_


class _Together:
    """A resolver that answers all threads at the same moment."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._barrier = threading.Barrier(THREADS)

    def resolve(self, upstream: Upstream) -> list[Endpoint]:
        """Tell the one instance."""
        self._barrier.wait(PATIENCE)
        return [self._endpoint]


@pytest.mark.usefixtures("_restless")
def test_first_calls_of_many_threads_find_what_a_resolver_told(
    authority: Authority, mesh: StaticMesh
) -> None:
    """No call is told that there is no instance while another takes note of them."""
    with serving(authority, answering()) as server, ThreadPoolExecutor(THREADS) as threads:
        for _ in range(20):
            with Client(mesh, resolver=_Together(server.endpoint("tax"))) as client:
                calls = [threads.submit(client.get, "https://tax/") for _ in range(THREADS)]
                assert [call.result(PATIENCE).text for call in calls] == ["ok"] * THREADS
