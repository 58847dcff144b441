"""
A request and an answer as the routes see them.

Owns the reading of Consul's query parameters and the form of its answers: bare text for errors,
compact JSON in Go's spelling otherwise. Knows neither ASGI nor what the routes do.

Source: Consul HTTP API, conventions (reference 1.1 to 1.4).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..exceptions import AgentError

_UNIT_SECONDS = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0,
}  # fmt: skip
# Possessive: what was taken for digits is not tried again as anything else.
_DURATION = re.compile(r"([-+]?)((?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:ns|us|µs|ms|s|m|h))++")
_DURATION_PART = re.compile(r"([0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(ns|us|µs|ms|s|m|h)")

DEFAULT_WAIT = 300.0
MAX_WAIT = 600.0
"""Seconds a blocking query waits when it names none, and at most. Source: reference 1.4."""


class Refusal(AgentError):
    """
    The agent refuses a request.

    Args:
        status: HTTP status, 500 for most validation errors as Consul has it.
        text: the bare message in the body.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def parse_duration(value: str | int | float) -> float:
    """
    Read a Go duration.

    Args:
        value: text like ``1m30s``, or a number of nanoseconds.

    Returns:
        Seconds.

    Raises:
        ValueError: no duration.
    """
    if isinstance(value, int | float):
        return value / 1e9
    if value == "0":
        return 0.0
    found = _DURATION.fullmatch(value)
    if not found:
        raise ValueError(f"time: invalid duration {json.dumps(value)}")
    parts = _DURATION_PART.findall(value)
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return -seconds if found[1] == "-" else seconds


@dataclass(frozen=True, slots=True)
class Request:
    """
    One HTTP request, decoded.

    Args:
        path: percent-decoded, without query.
        query: name to values, in order.
        headers: lower-case name to the last value.
    """

    method: str
    path: str
    query: Mapping[str, list[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def first(self, name: str) -> str:
        """The first value of the query parameter *name*, ``""`` without one."""
        return self.query.get(name, [""])[0]

    def flag(self, name: str) -> bool:
        """Whether *name* is there at all: flags have no value. Source: reference 1.1."""
        return name in self.query

    def token(self) -> str:
        """The ACL token, ``""`` for the anonymous one. Source: reference 1.1."""
        scheme, _, bearer = self.headers.get("authorization", "").partition(" ")
        return (
            self.first("token")
            or self.headers.get("x-consul-token", "")
            or (bearer.strip() if scheme.lower() == "bearer" else "")
        )

    def index(self) -> int:
        """
        The index to block on; 0 asks for the current value.

        Raises:
            Refusal: not a number.
        """
        text = self.first("index")
        if not text:
            return 0
        if not re.fullmatch(r"[0-9]{1,20}", text):
            raise Refusal(400, "Invalid index")
        return int(text)

    def wait(self) -> float | None:
        """
        Seconds the query may wait, at most `MAX_WAIT`; ``None`` when it does not say.

        Raises:
            Refusal: no duration.
        """
        text = self.first("wait")
        if not text:
            return None
        try:
            seconds = parse_duration(text)
        except ValueError:
            raise Refusal(400, "Invalid wait time") from None
        return min(seconds, MAX_WAIT) if seconds > 0 else DEFAULT_WAIT

    def json(self) -> Any:
        """
        The body as JSON.

        Raises:
            Refusal: it is none.
        """
        try:
            return json.loads(self.body or b"null")
        except ValueError as error:
            raise Refusal(400, f"Request decode failed: {error}") from None


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What goes back.

    Args:
        body: JSON value, text of an error, or bytes as they are.
        index: ``X-Consul-Index``; None where Consul sends none.
        headers: further headers, names in Consul's spelling.
        meta: whether leader and contact are told with the index.
        consistent: whether ``X-Consul-Effective-Consistency`` is among them.
        hash: ``X-Consul-ContentHash`` of hash-blocking answers.
    """

    body: Any = b""
    status: int = 200
    index: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    meta: bool = True
    consistent: bool = False
    hash: str = ""

    def encode(self, *, pretty: bool = False) -> tuple[bytes, str]:
        """The bytes of the body, and their content type (``""`` for no bytes)."""
        if isinstance(self.body, bytes):
            return self.body, "application/octet-stream" if self.body else ""
        if self.status >= 400:
            return str(self.body).encode(), "text/plain; charset=utf-8"
        indent, separators = (4, (",", ": ")) if pretty else (None, (",", ":"))
        text = json.dumps(self.body, ensure_ascii=False, indent=indent, separators=separators)
        # encoding/json escapes these so that a browser never reads an answer as markup.
        text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        return text.encode(), "application/json"


EMPTY = Answer()
"""200 without a body: what most of the agent's writes answer."""
