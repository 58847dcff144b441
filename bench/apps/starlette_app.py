"""The measured application: one endpoint with a small JSON answer."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def rates(_: Request) -> JSONResponse:
    """The rates."""
    return JSONResponse({"country": "DE", "percent": 19, "reduced": 7})


app = Starlette(routes=[Route("/rates", rates)])
