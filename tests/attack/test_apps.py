"""Several Flask applications in one process: what one allows itself, it does not allow another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mesh_middleware.dev import DevAgent

from ..interop.callers import Identity, knock
from ..interop.conftest import Serve
from ..support.servers import Process, clean_environment

pytestmark = pytest.mark.process

TWO = """
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from mesh_middleware import MeshNative

books = Flask("books")
MeshNative(books)


@books.get("/secret")
def secret():
    return "the books"


trial = Flask("trial")
trial.config[{key!r}] = {value!r}
MeshNative(trial)
app = DispatcherMiddleware(books, {{"/trial": trial}})
"""


OPTIONS = [("MESH_EXEMPT", "/secret"), ("MESH_MODE", "shadow"), ("MESH_SHADOW", "/secret")]


@pytest.mark.parametrize(("key", "value"), OPTIONS)
def test_what_one_application_lets_pass_the_other_does_not(
    key: str, value: str, agent: DevAgent, invoice: Identity, serve: Serve
) -> None:
    """Behind a dispatcher that nobody can look into, such an option allows nothing at all."""
    agent.deny("invoice", "tax")
    text = TWO.format(key=key, value=value) + HIDDEN
    server = serve(text, insecure_bind="127.0.0.1:0", listeners=2)
    for answer in (
        knock(server.port(), invoice.pem, path="/secret"),
        knock(server.port("http"), None, path="/secret", tls=False),
        knock(server.port(), invoice.pem, path="/trial/secret"),
    ):
        assert answer.startswith(b"HTTP/1.1 403 "), answer


HIDDEN = """
dispatcher = app


def app(environ, start_response):
    return dispatcher(environ, start_response)
"""


@pytest.mark.parametrize(("key", "value"), OPTIONS)
def test_options_of_an_inner_application_are_refused_at_start(
    key: str, value: str, serve: Serve
) -> None:
    """The server judges before it: the line names the setting that does what was meant."""
    server = serve(TWO.format(key=key, value=value), listeners=0)
    assert server.wait_end() != 0
    *others, line = server.lines
    assert all(other.startswith("exempt from the intentions: ") for other in others)
    name = key.removeprefix("MESH_").lower()
    assert line.startswith(f"mesh_middleware: {name} of a middleware that is not outermost")
    assert f"use the setting {name} of the mesh" in line


STARLETTE_OPTIONS = """
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount

from mesh_middleware import MeshAuthz

sub = Starlette()
app = Starlette(routes=[Mount("/sub", app=sub)])
{target}.add_middleware(MeshAuthz, {options})
app.add_middleware(CORSMiddleware, allow_origins=["*"])
"""


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("target", ["app", "sub"])
@pytest.mark.parametrize(
    ("options", "names"),
    [("exempt=['/healthz']", "exempt"), ("shadow=['/new'], mode='shadow'", "mode, shadow")],
)
def test_options_of_an_inner_middleware_are_refused_at_start(
    options: str, names: str, target: str, worker: str, serve: Serve
) -> None:
    """Whether its application has been built by then or not; in one line on each worker."""
    text = STARLETTE_OPTIONS.format(target=target, options=options)
    server = serve(text, listeners=0, worker_class=worker)
    assert server.wait_end() != 0
    *others, line = server.lines
    assert all(other.startswith("exempt from the intentions: ") for other in others)
    assert line.startswith(f"mesh_middleware: {names} of a middleware that is not outermost")
    assert f"{names} of the mesh" in line


def test_applications_that_name_two_services_are_refused(serve: Serve) -> None:
    """One process is one service: judged by the other's intentions, one of them would be open."""
    app = TWO.replace("MeshNative(books)", 'books.config["MESH_SERVICE"] = "a"\nMeshNative(books)')
    server = serve(app.format(key="MESH_SERVICE", value="b"), None, listeners=0)
    assert server.wait_end() != 0
    (line,) = server.lines
    assert line == (
        "mesh_middleware: applications of one process disagree: MESH_SERVICE is 'a' and 'b'"
    )


PROGRAM = """
import asyncio
import sys

from hypercorn.asyncio import serve
from hypercorn.config import Config

from mesh_middleware import MeshAuthz


async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})


async def one(service):
    config = Config()
    config.bind, config.certfile, config.keyfile = ["127.0.0.1:0"], "mesh", "mesh"
    config.mesh = {"service": service, "agent": sys.argv[1]}
    await serve(MeshAuthz(app), config, shutdown_trigger=asyncio.Event().wait)


async def main():
    await asyncio.gather(one("books"), one("trial"))


asyncio.run(main())
"""


def test_two_services_in_one_process_are_refused(agent: DevAgent, tmp_path: Path) -> None:
    """Whoever is denied at one would be let in by the policy of the other."""
    command = [sys.executable, "-c", PROGRAM, agent.url]
    with Process(command, tmp_path, clean_environment()) as program:
        assert program.wait_end() != 0
        assert "this process is the service 'books' already" in program.output
