"""The application that the scenarios call: quick answers, slow ones, streams, WebSockets."""

from __future__ import annotations

STREAMS = """
import asyncio
import os

from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from mesh_middleware import MeshAuthz

gate = asyncio.Event()
waiting = 0


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
        while True:
            yield f"data: {number}\\n\\n"
            number += 1
            await asyncio.sleep(0.05)

    return StreamingResponse(tell(), media_type="text/event-stream")


async def talk(websocket):
    await websocket.accept()
    async for _ in websocket.iter_text():
        await websocket.send_json({"peer": name(websocket)})


async def speak(websocket):
    await websocket.accept()
    while True:
        await websocket.send_text("still here")
        await asyncio.sleep(0.05)


routes = [
    Route("/who", who), Route("/held", held), Route("/release", release), Route("/tasks", tasks),
    Route("/events", events), WebSocketRoute("/ws", talk), WebSocketRoute("/speak", speak),
]
app = Starlette(routes=routes)
app.add_middleware(MeshAuthz)
"""

SLOW = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from mesh_middleware import MeshAuthz


async def slow(request):
    print("a slow one begins", flush=True)
    await asyncio.sleep(2.0)
    return PlainTextResponse("done")


app = Starlette(routes=[Route("/slow", slow)])
app.add_middleware(MeshAuthz)
"""
