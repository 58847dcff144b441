"""Tax: knows the rate, and keeps the books. Who may ask, and who may write, the intentions say."""

from flask import Flask, request

from mesh_middleware import MeshNative, mesh_peer

PERCENT = 19

app = Flask(__name__)
MeshNative(app)
books: list[float] = []


@app.get("/tax")
def tax() -> dict[str, object]:
    """The tax on a net amount."""
    net = request.args.get("net", 0.0, float)
    return {"percent": PERCENT, "tax": net * PERCENT / 100, "caller": mesh_peer.id.uri}


@app.post("/tax")
def file_tax() -> tuple[dict[str, object], int]:
    """Write the tax on a net amount into the books."""
    net = request.args.get("net", 0.0, float)
    books.append(net * PERCENT / 100)
    return {"entry": len(books), "tax": books[-1], "caller": mesh_peer.id.uri}, 201
