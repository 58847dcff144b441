"""Nobody writes lines of their own into the log: neither callers nor whoever answers as agent."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from mesh_middleware import Mesh, MeshAuthz
from mesh_middleware.dev import Answer, DevAgent, Request

from ..support.doors import App, Exchange, Inside
from ..support.servers import until

FORGED = "no\r\n2026-01-01 CRITICAL forged \x1b[2J\u2028line\x00"


def test_an_agents_words_are_one_line(agent: DevAgent, caplog: pytest.LogCaptureFixture) -> None:
    """Errors are quoted in log and status: without line ends, escapes or other controls."""

    async def refuse(request: Request) -> Answer | None:
        return Answer(FORGED, 403) if "leaf" in request.path else None

    agent.app.interpose = refuse
    with caplog.at_level(logging.DEBUG, "mesh_middleware"):
        with Mesh("tax", agent=agent.url, plugins=()) as mesh:
            until(lambda: "leaf" in mesh.status()["troubles"], "the trouble")
            said = mesh.status()["troubles"]["leaf"]
    assert "CRITICAL forged" in said
    assert [line for line in (said, *caplog.messages) if not line.isprintable()] == []


@pytest.mark.parametrize(
    "hostile",
    [
        {"method": "GET\r\nforged"},
        {"method": "G\x1b[2J"},
        {"path": "/a\nforged", "raw_path": b"/a\nforged"},
        {"path": "/\x1b[2J", "raw_path": b"/%1b[2J"},
        {"query_string": b"\r\nforged"},
        {"headers": [(b"host", b"tax"), (b"x", b"\r\nforged" + b"," * 300)]},
    ],
    ids=["method", "escape", "path", "escaped", "query", "header"],
)
def test_a_callers_bytes_are_quoted(
    hostile: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a server lets through of a hostile head."""
    rule = [{"Action": "deny", "HTTP": {"Header": [{"Name": "x", "Exact": "y"}]}}]
    with Inside() as inside, caplog.at_level(logging.DEBUG, "mesh_middleware"):
        inside.agent.set_protocol("tax", "http")
        inside.agent.permissions("invoice", "tax", rule)
        assert inside.mesh.wait_for(lambda s: bool(s.intentions), 5)
        exchange = Exchange("/")
        exchange.scope |= hostile
        inside.run(lambda: exchange.through(MeshAuthz(App(), mesh=inside.mesh)))
        assert [line for line in caplog.messages if not line.isprintable()] == []
