"""The applications under test, as text: each is what a user would write, and counts its calls."""

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from mesh_middleware import MeshAuthz

calls = []


async def who(request):
    calls.append(request.url.path)
    peer = request.state.mesh.peer
    return JSONResponse({"peer": peer.id.uri if peer else None, "calls": len(calls)})


app = Starlette(routes=[Route("/who", who), Route("/open", who)])
app.add_middleware(MeshAuthz)
"""

FASTAPI = """
from fastapi import FastAPI, Request

from mesh_middleware import MeshAuthz

app = FastAPI()
app.add_middleware(MeshAuthz)
calls = []


@app.get("/who")
async def who(request: Request):
    calls.append(request.url.path)
    return {"peer": request.state.mesh.peer.id.uri, "calls": len(calls)}
"""

FLASK = """
from flask import Flask
from mesh_middleware.flask import mesh_peer

from mesh_middleware import MeshNative

app = Flask(__name__)
MeshNative(app)
calls = []


@app.get("/who")
def who():
    calls.append("/who")
    return {"peer": mesh_peer.id.uri, "calls": len(calls)}
"""

APPS = {"starlette": STARLETTE, "fastapi": FASTAPI, "flask": FLASK}
