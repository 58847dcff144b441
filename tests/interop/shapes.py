"""
Applications as people build them: a text of ``app.py`` each, served by ``hypercorn --config mesh``.

Each answers ``inside`` from a handler of its own, and what stands outside of it ``outside``. Their
paths tell which requests a caller may send to see either.
"""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """
    One way to build an application.

    Args:
        text: of ``app.py``.
        paths: requests that an allowed caller gets answered with 200.
    """

    text: str
    paths: tuple[str, ...] = ("/admin",)


_STARLETTE = """
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from mesh_middleware import MeshAuthz, MeshAuthzWSGI, MeshNative


def inside(request):
    return PlainTextResponse("inside")


def routes():
    return [Route("/admin", inside, methods=["GET", "POST"]), Route("/who", inside)]

"""

_FLASK = """
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from mesh_middleware import MeshAuthz, MeshAuthzWSGI, MeshNative


def make(name="main"):
    made = Flask(name)
    made.add_url_rule("/admin", "admin", lambda: "inside", methods=["GET", "POST"])
    made.add_url_rule("/who", "who", lambda: "inside")
    return made

"""

_PLAIN = """
async def plain(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})

"""

SHAPES = {
    "outermost": Shape(
        _STARLETTE + "app = Starlette(routes=routes())\napp.add_middleware(MeshAuthz)\n"
    ),
    "none": Shape(_STARLETTE + "app = Starlette(routes=routes())\n"),
    "mounted": Shape(
        _STARLETTE
        + """
sub = Starlette(routes=routes())
sub.add_middleware(MeshAuthz)
app = Starlette(routes=[*routes(), Mount("/sub", app=sub)])
""",
        ("/admin", "/sub/who"),
    ),
    "eager mount": Shape(
        _STARLETTE
        + """
sub = MeshAuthz(Starlette(routes=routes()))
app = Starlette(routes=[*routes(), Mount("/sub", app=sub)])
""",
        ("/admin", "/sub/who"),
    ),
    "another application in the module": Shape(
        _FLASK + "internal = make('internal')\nMeshNative(internal)\napp = make()\n"
    ),
    "CORS added last": Shape(
        _STARLETTE
        + """
app = Starlette(routes=routes())
app.add_middleware(MeshAuthz)
app.add_middleware(CORSMiddleware, allow_origins=["*"])
"""
    ),
    "BaseHTTPMiddleware outside": Shape(
        _STARLETTE
        + """
class Cache(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        if request.url.path == "/cached":
            return PlainTextResponse("outside")
        return await call_next(request)


app = Starlette(routes=routes())
app.add_middleware(MeshAuthz)
app.add_middleware(Cache)
""",
        ("/cached", "/admin"),
    ),
    "a list of middlewares": Shape(
        _STARLETTE + "app = Starlette(routes=routes(), middleware=[Middleware(CORSMiddleware), "
        "Middleware(MeshAuthz)])\n"
    ),
    "a body limit outside": Shape(
        _STARLETTE
        + "app = Starlette(routes=routes(), max_body_size=10)\napp.add_middleware(MeshAuthz)\n"
    ),
    "a dispatcher by hand": Shape(
        _STARLETTE
        + """
api = Starlette(routes=routes())
api.add_middleware(MeshAuthz)


async def app(scope, receive, send):
    if scope["type"] != "lifespan" and scope["path"].startswith("/admin"):
        await PlainTextResponse("outside")(scope, receive, send)
    else:
        await api(scope, receive, send)
""",
        ("/admin", "/who"),
    ),
    "a subclass": Shape(
        _STARLETTE
        + """
class Own(Starlette):
    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/early":
            await PlainTextResponse("outside")(scope, receive, send)
            return
        await super().__call__(scope, receive, send)


app = Own(routes=routes())
app.add_middleware(MeshAuthz)
""",
        ("/early", "/admin"),
    ),
    "a replaced stack": Shape(
        _STARLETTE
        + """
app = Starlette(routes=routes())
app.add_middleware(MeshAuthz)
build = app.build_middleware_stack


def short():
    stack = build()

    async def outside(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/early":
            await PlainTextResponse("outside")(scope, receive, send)
        else:
            await stack(scope, receive, send)

    return outside


app.build_middleware_stack = short
""",
        ("/early", "/admin"),
    ),
    "without lifespan": Shape(
        _PLAIN.replace('if scope["type"] == "lifespan":', "if False:")
        + """
from mesh_middleware import MeshAuthz


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("this application knows no lifespan")
    await plain(scope, receive, send)
"""
    ),
    "the middleware itself": Shape(
        _PLAIN + "from mesh_middleware import MeshAuthz\n\napp = MeshAuthz(plain)\n"
    ),
    "a wrapper around the middleware": Shape(
        _PLAIN
        + """
from mesh_middleware import MeshAuthz

judged = MeshAuthz(plain)


async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/early":
        await plain(scope, receive, send)
    else:
        await judged(scope, receive, send)
""",
        ("/early", "/admin"),
    ),
    "fastapi": Shape(
        """
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from mesh_middleware import MeshAuthz

app = FastAPI()
app.add_middleware(MeshAuthz)


@app.get("/admin", response_class=PlainTextResponse)
def admin():
    return "inside"
"""
    ),
    "fastapi that mounts": Shape(
        """
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from mesh_middleware import MeshAuthz

sub = FastAPI()
sub.add_middleware(MeshAuthz)
app = FastAPI()
app.mount("/sub", sub)


@sub.get("/who", response_class=PlainTextResponse)
@app.get("/admin", response_class=PlainTextResponse)
def admin():
    return "inside"
""",
        ("/admin", "/sub/who"),
    ),
    "quart": Shape(
        """
from quart import Quart

from mesh_middleware import MeshAuthz

app = Quart(__name__)
app.asgi_app = MeshAuthz(app.asgi_app)


@app.get("/admin")
async def admin():
    return "inside"
"""
    ),
    "quart, wrapped": Shape(
        """
from quart import Quart

from mesh_middleware import MeshAuthz

app = Quart(__name__)
app.asgi_app = MeshAuthz(app.asgi_app)
judged = app.asgi_app


async def outside(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/early":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"outside"})
    else:
        await judged(scope, receive, send)


app.asgi_app = outside


@app.get("/admin")
async def admin():
    return "inside"
""",
        ("/early", "/admin"),
    ),
    "flask": Shape(_FLASK + "app = make()\nMeshNative(app)\n"),
    "flask without": Shape(_FLASK + "import mesh_middleware\n\napp = make()\n"),
    "flask in a factory": Shape(
        _FLASK
        + """
def build():
    made = make()
    MeshNative().init_app(made)
    return made


app = build()
"""
    ),
    "flask behind ProxyFix": Shape(
        _FLASK + "app = make()\nMeshNative(app)\napp.wsgi_app = ProxyFix(app.wsgi_app)\n"
    ),
    "a dispatcher of werkzeug": Shape(
        _FLASK
        + "api = make('api')\nMeshNative(api)\napp = DispatcherMiddleware(make(), {'/api': api})\n",
        ("/admin", "/api/who"),
    ),
    "flask with an early answer": Shape(
        _FLASK
        + """
app = make()
MeshNative(app)
judged = app.wsgi_app


def outside(environ, start_response):
    if environ["PATH_INFO"] == "/early":
        start_response("200 OK", [])
        return [b"outside"]
    return judged(environ, start_response)


app.wsgi_app = outside
""",
        ("/early", "/admin"),
    ),
    "WSGI in ASGI": Shape(
        _STARLETTE
        + _FLASK
        + """
from a2wsgi import WSGIMiddleware

flask = make()
MeshNative(flask)
app = Starlette(routes=[*routes(), Mount("/flask", app=WSGIMiddleware(flask))])
""",
        ("/admin", "/flask/who"),
    ),
    "WSGI in ASGI, outermost": Shape(
        _STARLETTE
        + _FLASK
        + """
from a2wsgi import WSGIMiddleware

flask = make()
MeshNative(flask)
app = Starlette(routes=[*routes(), Mount("/flask", app=WSGIMiddleware(flask))])
app.add_middleware(MeshAuthz)
""",
        ("/admin", "/flask/who"),
    ),
    "ASGI in WSGI": Shape(
        _STARLETTE
        + """
from a2wsgi import ASGIMiddleware

star = Starlette(routes=routes())
star.add_middleware(MeshAuthz)
bridge = ASGIMiddleware(star)


def app(environ, start_response):
    if environ["PATH_INFO"] == "/early":
        start_response("200 OK", [])
        return [b"outside"]
    return bridge(environ, start_response)
""",
        ("/early", "/admin"),
    ),
}
