"""The applications that the scenarios call: answers quick, slow and large, streams, WebSockets."""

from __future__ import annotations

STREAMS = """
import asyncio
import os

import anyio
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from mesh_middleware import MeshAuthz

gate = anyio.Event()
waiting = 0


async def beat():
    "Twenty times a second, until the gate opens."
    with anyio.move_on_after(0.05):
        await gate.wait()


def name(connection):
    return connection.state.mesh.peer.id.uri


async def who(request):
    return JSONResponse({"peer": name(request), "pid": os.getpid()})


async def held(request):
    global waiting
    waiting += 1
    try:
        await gate.wait()
    finally:
        waiting -= 1
    return JSONResponse({"peer": name(request)})


async def release(request):
    count = waiting
    if request.query_params.get("now"):
        gate.set()
    return JSONResponse({"waiting": count})


async def tasks(request):
    return JSONResponse({"tasks": len(asyncio.all_tasks()), "waiting": waiting})


async def events(request):
    async def tell():
        number = 0
        while not gate.is_set():
            yield f"data: {number}\\n\\n"
            number += 1
            await beat()

    return StreamingResponse(tell(), media_type="text/event-stream")


async def talk(websocket):
    await websocket.accept()
    async for _ in websocket.iter_text():
        await websocket.send_json({"peer": name(websocket)})


async def speak(websocket):
    await websocket.accept()
    while not gate.is_set():
        await websocket.send_text("still here")
        await beat()


routes = [
    Route("/who", who), Route("/held", held), Route("/release", release), Route("/tasks", tasks),
    Route("/events", events), WebSocketRoute("/ws", talk), WebSocketRoute("/speak", speak),
]
app = Starlette(routes=routes)
app.add_middleware(MeshAuthz)
"""

SLOW = """
import os
from contextlib import suppress

import anyio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from mesh_middleware import MeshAuthz


async def slow(request):
    async with await anyio.connect_tcp("127.0.0.1", int(os.environ["GATE"])) as gate:
        with suppress(anyio.EndOfStream):
            await gate.receive()
    return PlainTextResponse("done")


app = Starlette(routes=[Route("/slow", slow)])
app.add_middleware(MeshAuthz)
"""

TAKES = """
from flask import Flask, request
from mesh_middleware import MeshNative

app = Flask(__name__)
MeshNative(app)


@app.post("/up")
def up():
    return str(len(request.data))
"""

LARGE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from mesh_middleware import MeshAuthz


async def large(request):
    "More than the buffers between the two take."
    return PlainTextResponse("x" * 30_000_000)


app = Starlette(routes=[Route("/large", large)])
app.add_middleware(MeshAuthz)
"""
