"""
Under which Hypercorn, if any, this process imports the application.

Owns one look up the call stack. With ``hypercorn --config mesh`` Hypercorn has read the file and
opened its sockets before the application, and with it this package, is imported; the configuration
object can be had from nowhere else by then, and it is wanted at import, so that a missing service
name ends the server with one line instead of a traceback later.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

MARK = "mesh"
"""Value of ``certfile`` and ``keyfile`` that means our context."""
MAX_FRAMES = 200
_OTHER_SERVERS = {
    "flask": "Flask's development server",
    "fastapi": "Uvicorn",
    "uvicorn": "Uvicorn",
    "gunicorn": "Gunicorn",
    "granian": "Granian",
    "daphne": "Daphne",
    "waitress-serve": "Waitress",
    "waitress": "Waitress",
}

_seen: Any = None


def find_config(*, remembered: bool = True) -> Any:
    """
    Find Hypercorn's configuration on the call stack.

    Args:
        remembered: whether the one found before counts when the stack has none.

    Returns:
        The ``hypercorn.config.Config``, or ``None``.
    """
    global _seen
    found = _local("config", _is_config)
    if found is not None:
        _seen = found
    return _seen if remembered else found


def find_sockets() -> Any:
    """Find Hypercorn's open sockets on the call stack, or ``None``."""
    return _local("sockets", lambda value: hasattr(value, "secure_sockets"))


def find_application() -> Any:
    """Find Hypercorn's wrapper around the application on the call stack, or ``None``."""
    kinds = ("ASGIWrapper", "WSGIWrapper")
    return _local("app", lambda value: type(value).__name__ in kinds)


def find_shutdown_event() -> Any:
    """Find the event by which Hypercorn's parent ends its workers, or ``None``."""
    return _local("shutdown_event", lambda value: hasattr(value, "is_set"))


def is_marked(config: Any) -> bool:
    """Whether *config* asks for our context."""
    return bool(config.certfile == MARK and config.keyfile == MARK)


def table(config: Any) -> Mapping[str, Any]:
    """The ``[mesh]`` table of *config*; empty when there is none."""
    found = getattr(config, "mesh", None)
    return found if isinstance(found, Mapping) else {}


def why_plain() -> str:
    """Say why this process has no mesh identity to judge by, as far as it can be known."""
    config = find_config()
    if config is None:
        return (
            f"{_server()} serves no mutual TLS of the mesh, so nobody can show who they are; "
            "serve with Hypercorn, `hypercorn --config mesh MODULE:app`, and a file `mesh` "
            "beside the application"
        )
    if is_marked(config):
        return "it came over a plaintext listener (insecure_bind)"
    said = [f"{key} is {getattr(config, key)!r}" for key in ("certfile", "keyfile")]
    return (
        f"Hypercorn serves plaintext: {' and '.join(said)}, both have to be {MARK!r}"
        f"{_misspelt(config) or _unread(config)}"
    )


def _server() -> str:
    """What runs this process, by the name of its command."""
    command = Path(sys.argv[0])
    name = command.parent.name if command.name == "__main__.py" else command.stem
    return _OTHER_SERVERS.get(name, "this process")


def _unread(config: Any) -> str:
    return "" if table(config) else "; was it started with --config mesh?"


def _misspelt(config: Any) -> str:
    import difflib  # for a mistake only

    from hypercorn.config import Config

    unknown = [key for key in vars(config) if not hasattr(Config, key) and key != "mesh"]
    near = [
        f"{key!r} for {known!r}"
        for key in unknown
        for known in difflib.get_close_matches(key, ["certfile", "keyfile"], n=1, cutoff=0.6)
    ]
    return f"; the file says {', '.join(near)}" if near else ""


def _is_config(value: Any) -> bool:
    module = sys.modules.get("hypercorn.config")
    return module is not None and isinstance(value, module.Config)


def _local(name: str, wanted: Any) -> Any:
    frame: FrameType | None = sys._getframe(1)
    for _ in range(MAX_FRAMES):
        if frame is None:
            return None
        value = frame.f_locals.get(name)
        if value is not None and wanted(value):
            return value
        frame = frame.f_back
    return None
