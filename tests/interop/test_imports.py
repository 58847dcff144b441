"""
What a served process loads: each module costs a start time, and each worker memory.

Told by the process itself, once it has joined the mesh and answers.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

import mesh_middleware
from mesh_middleware import intentions, plugins
from mesh_middleware.dev import DevAgent

from ..support.servers import PATIENCE
from .callers import Identity, knock
from .conftest import Serve
from .test_hypercorn import body

STARLETTE = """
import sys

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from mesh_middleware import MeshAuthz


async def modules(request):
    return JSONResponse(sorted(sys.modules))


app = Starlette(routes=[Route("/modules", modules)])
app.add_middleware(MeshAuthz)
"""

FLASK = """
import sys

from flask import Flask

from mesh_middleware import MeshNative

app = Flask(__name__)
MeshNative(app)


@app.get("/modules")
def modules():
    return sorted(sys.modules)
"""

CALLING = (
    "httpx",
    "httpcore",
    "anyio._backends",
    "mesh_middleware.chains",
    "mesh_middleware.httpx",
    "mesh_middleware.outbound",
    "mesh_middleware.raw",
    "mesh_middleware.resolve",
    "mesh_middleware.routing",
    "mesh_middleware.upstreams",
)
"""For calls to upstreams."""

NOT_IN_USE = (
    "cryptography.hazmat.primitives.ciphers.aead",
    "jwt",
    "mesh_middleware.cli",
    "mesh_middleware.consul.providers",
    "mesh_middleware.consul.transport",
    "mesh_middleware.dev",
    "mesh_middleware.hookspecs",
    "mesh_middleware.intentions.jws",
    "mesh_middleware.intentions.jwt",
    "mesh_middleware.jwks",
    "mesh_middleware.keepsake",
    "mesh_middleware.metrics",
    "mesh_middleware.pytest_plugin",
    "pluggy",
    "re2",
)
"""For tokens, patterns, plugins, a file of the last known good, metrics, development."""

OTHER_DOOR = {
    "starlette": ("flask", "mesh_middleware.flask", "mesh_middleware.wsgi"),
    "flask": ("starlette", "fastapi"),
}


def loaded(agent: DevAgent, serve: Serve, app: str) -> list[str]:
    """What a worker has loaded that serves *app* to a caller whom an intention allows."""
    agent.allow("invoice", "tax")
    server = serve(app, {"service": "tax", "plugins": False})
    answer = knock(server.port(), Identity.of(*agent.issue("invoice")).pem, path="/modules")
    found: list[str] = body(answer)
    return found


def of(modules: list[str], packages: tuple[str, ...]) -> set[str]:
    """Those of *packages* of which anything is among *modules*."""
    return {name for name in packages for module in modules if f"{module}.".startswith(f"{name}.")}


@pytest.mark.parametrize(("name", "app"), [("starlette", STARLETTE), ("flask", FLASK)])
def test_a_served_process_loads_nothing_it_does_not_use(
    name: str, app: str, agent: DevAgent, serve: Serve
) -> None:
    """A service that calls nobody, under plain intentions: no routing, no httpx, no RE2."""
    modules = loaded(agent, serve, app)
    assert "mesh_middleware.mesh" in modules
    assert of(modules, (*CALLING, *NOT_IN_USE, *OTHER_DOOR[name])) == set()


def test_a_pattern_loads_its_engine_with_the_policy(agent: DevAgent, serve: Serve) -> None:
    """Before the first request, which would wait for it."""
    agent.set_protocol("tax", "http")
    regex = {"Action": "allow", "HTTP": {"PathRegex": "/m.*"}}
    agent.permissions("invoice", "tax", [regex])
    server = serve(STARLETTE, {"service": "tax", "plugins": False})
    invoice = Identity.of(*agent.issue("invoice")).pem
    assert "re2" in body(knock(server.port(), invoice, path="/modules"))


LAZY = [
    *((mesh_middleware.__name__, name) for name in mesh_middleware.__all__),
    (intentions.__name__, "JwtProvider"),
    (plugins.__name__, "hookimpl"),
]


def test_every_public_name_is_found_first() -> None:
    """Most are fetched on first use: each can be what an interpreter asks for before all others."""
    program = (
        "import sys, importlib\nassert getattr(importlib.import_module({!r}), {!r}) is not None"
    )
    forget = (
        "\nfor name in [n for n in sys.modules if 'mesh_middleware' in n]: del sys.modules[name]\n"
    )
    text = "".join(program.format(*each) + forget for each in LAZY)
    subprocess.run([sys.executable, "-c", text], check=True, timeout=PATIENCE)


@pytest.mark.parametrize("module", [mesh_middleware, intentions, plugins])
def test_a_name_that_is_not_there_is_an_attribute_error(module: object) -> None:
    """As in any module: ``hasattr`` and ``from ... import`` count on it."""
    with pytest.raises(AttributeError, match="nonsense"):
        module.nonsense  # type: ignore[attr-defined]  # noqa: B018
