"""WSGI requests as a server makes them."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote
from wsgiref.util import setup_testing_defaults


def environ(path: str = "/", *, scheme: str = "https", **more: Any) -> dict[str, Any]:
    """What a server would give for a GET of *path*, which is percent-encoded."""
    made: dict[str, Any] = {
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(path),
        "QUERY_STRING": "",
        **more,
    }
    setup_testing_defaults(made)
    made["wsgi.url_scheme"] = scheme
    return made


class Call:
    """
    One request, and what was answered.

    Args:
        app: a WSGI application.
        environ: the request.
    """

    def __init__(self, app: Any, environ: dict[str, Any]) -> None:
        self.status_line = ""
        answer = app(environ, self._start)
        self.body = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()

    def _start(self, status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        self.status_line = status
        self.headers = {name.lower(): value for name, value in headers}
        return lambda data: None

    @property
    def status(self) -> int:
        """Status of the answer."""
        return int(self.status_line[:3])
