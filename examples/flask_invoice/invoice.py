"""Invoice: adds the tax to an amount. Order calls it, and it calls tax."""

import httpx
from flask import Flask

from mesh_middleware import Client, MeshNative, mesh_peer

NET = 100.0

app = Flask(__name__)
MeshNative(app)
tax = Client(base_url="https://tax", params={"net": NET}, timeout=5)


@app.get("/invoices/<int:number>")
def invoice(number: int) -> dict[str, object]:
    """An invoice, with what tax says about its amount."""
    return show(number, tax.get("/tax"))


@app.post("/invoices/<int:number>")
def book(number: int) -> dict[str, object]:
    """Book an invoice: its tax goes into tax's books."""
    return show(number, tax.post("/tax"))


def show(number: int, answer: httpx.Response) -> dict[str, object]:
    told = answer.raise_for_status().json()
    caller = mesh_peer.id.uri
    return {"invoice": number, "gross": NET + told["tax"], "caller": caller, "tax": told}


@app.errorhandler(httpx.HTTPError)
def failed(error: httpx.HTTPError) -> tuple[dict[str, object], int]:
    """Tax refused the call, or cannot be reached: the reason is for our caller."""
    return {"error": str(error)}, 502
