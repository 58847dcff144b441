"""Fixtures: an agent, and servers that end with their test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from mesh_middleware.dev import DevAgent

from ..support.servers import Hypercorn, mesh_file
from .apps import STARLETTE


class Serve(Protocol):
    """Starts a server, which ends with the test."""

    def __call__(
        self,
        app: str = STARLETTE,
        mesh: Mapping[str, Any] | None = ...,
        *,
        listeners: int = 1,
        folder: str = "app",
        arguments: tuple[str, ...] = ...,
        environment: Mapping[str, str] | None = None,
        agent: str = "",
        **top: Any,
    ) -> Hypercorn:
        """
        Serve *app* as the service of the table *mesh*.

        Args:
            listeners: wait until so many serve; 0 does not wait.
            folder: where it runs; the same for two instances on one host.
            arguments: of the ``hypercorn`` command.
            environment: more variables.
            agent: another one than the fixture's.
            top: Hypercorn's own keys.
        """


@pytest.fixture
def agent() -> Iterator[DevAgent]:
    """A running agent that allows what no intention names."""
    with DevAgent() as agent:
        yield agent


WAITS = {"ready_timeout": 3.0}
"""With an agent that answers, a server that runs has joined: also on a machine with much to do."""


@pytest.fixture
def serve(agent: DevAgent, tmp_path: Path) -> Iterator[Serve]:
    """Starts servers, and stops them after the test."""
    usual = agent.url
    with ExitStack() as stack:

        def serve(
            app: str = STARLETTE,
            mesh: Mapping[str, Any] | None = {"service": "tax"},
            *,
            listeners: int = 1,
            folder: str = "app",
            arguments: tuple[str, ...] = ("--config", "mesh", "app:app"),
            environment: Mapping[str, str] | None = None,
            agent: str = "",
            **top: Any,
        ) -> Hypercorn:
            server = Hypercorn(
                tmp_path / folder,
                app,
                mesh_file(mesh if agent or not mesh else {**WAITS, **mesh}, **top),
                agent=agent or usual,
                arguments=arguments,
                environment=environment,
            )
            stack.enter_context(server)
            stack.callback(lambda: print(server.output))  # seen where the test fails
            return server.wait_ready(listeners) if listeners else server

        yield serve
