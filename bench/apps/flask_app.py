"""The measured application: one endpoint with a small JSON answer."""

from flask import Flask

app = Flask(__name__)


@app.get("/rates")
def rates() -> dict[str, object]:
    """The rates."""
    return {"country": "DE", "percent": 19, "reduced": 7}
