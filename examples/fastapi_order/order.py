"""Order: what the shop talks to. It calls invoice, which calls tax."""

import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from mesh_middleware import AsyncClient, MeshAuthz

app = FastAPI()
app.add_middleware(MeshAuthz)
invoice = AsyncClient(base_url="https://invoice", timeout=10)


@app.get("/orders/{number}")
async def order(number: int, request: Request) -> dict[str, object]:
    """An order, with its invoice."""
    return show(number, request, await invoice.get(f"/invoices/{number}"))


@app.post("/orders/{number}")
async def place(number: int, request: Request) -> dict[str, object]:
    """Place an order: its invoice is booked."""
    return show(number, request, await invoice.post(f"/invoices/{number}"))


def show(number: int, request: Request, answer: httpx.Response) -> dict[str, object]:
    if answer.status_code == 502:
        raise HTTPException(502, f"invoice: {answer.json()['error']}")
    told = answer.raise_for_status().json()
    return {"order": number, "caller": request.state.mesh.peer.id.uri, "invoice": told}


@app.exception_handler(httpx.HTTPError)
async def failed(_: Request, error: httpx.HTTPError) -> JSONResponse:
    """Invoice refused the call, or cannot be reached: the reason is for our caller."""
    return JSONResponse({"detail": str(error)}, 502)
