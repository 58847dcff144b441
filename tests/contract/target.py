"""The agent under test, real or ours, and how the suite speaks to it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

PATIENCE = 20.0
"""Seconds the suite waits for anything."""
_numbers = itertools.count(1)


class Target:
    """
    An agent's address with what the suite needs to know about it.

    Args:
        kind: ``"dev"`` or ``"real"``.
        version: what it calls itself.
    """

    def __init__(self, kind: str, url: str, version: str) -> None:
        self.kind = kind
        self.url = url
        self.version = version
        self.client = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)
        self._pool = ThreadPoolExecutor(16)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.version}>"

    @property
    def has_l7(self) -> bool:
        """Whether intentions are config entries, with permissions and the exact form (1.9)."""
        return tuple(int(part) for part in self.version.split("+")[0].split(".")[:2]) >= (1, 9)

    def name(self, stem: str = "svc") -> str:
        """A service name that no other test uses."""
        return f"{stem}-{next(_numbers)}"

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """Send one request; *body* as JSON without a Content-Type, as the Go client does."""
        content = None if body is None else json.dumps(body).encode()
        return self.client.request(method, path, content=content, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", path, **options)

    def put(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """PUT."""
        return self.request("PUT", path, body, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """POST."""
        return self.request("POST", path, body, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        """DELETE."""
        return self.request("DELETE", path, **options)

    def index(self, path: str) -> int:
        """The index of *path* now."""
        return index_of(self.get(path))

    def later(self, path: str) -> Future[httpx.Response]:
        """GET *path* in the background."""
        return self._pool.submit(self.get, path)

    @contextmanager
    def blocked(self, path: str, index: int | None = None) -> Iterator[Future[httpx.Response]]:
        """A blocking query on *path* that has begun to wait: the body makes it wake."""
        at = self.index(path) if index is None else index
        joint = "&" if "?" in path else "?"
        future = self.later(f"{path}{joint}index={at}&wait=15s")
        assert not done_within(future, 0.05), "it did not block"
        yield future

    def deny(self, source: str, destination: str) -> str:
        """Deny by the oldest call there is; its ID."""
        return self.intend(source, destination, "deny")

    def intend(self, source: str, destination: str, action: str) -> str:
        """Create an intention by the oldest call there is; its ID."""
        body = {"SourceName": source, "DestinationName": destination, "Action": action}
        answer = self.post("/v1/connect/intentions", body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["ID"])

    def forget(self, identity: str) -> None:
        """Delete an intention by its ID."""
        assert self.delete(f"/v1/connect/intentions/{identity}").status_code == 200

    def register(self, **definition: Any) -> None:
        """Register a service."""
        answer = self.put("/v1/agent/service/register", definition)
        assert answer.status_code == 200, answer.text

    def close(self) -> None:
        """Let go of the connections."""
        self._pool.shutdown(cancel_futures=True)
        self.client.close()


def index_of(answer: httpx.Response) -> int:
    """``X-Consul-Index`` of an answer."""
    return int(answer.headers["X-Consul-Index"])


def done_within(future: Future[Any], seconds: float) -> bool:
    """Whether *future* gets its result within that time."""
    try:
        future.result(seconds)
    except TimeoutError:
        return False
    return True
