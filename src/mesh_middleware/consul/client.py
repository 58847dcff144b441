"""
Sends to the agent what `wire` and `watch` say.

Owns the connections to one agent: address, TLS, token, bounds on time and size. Knows nothing of
what the answers mean. Never follows a redirect, never uses a proxy, never shows the token.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from ..config import Settings, is_header_text
from ..exceptions import (
    AgentAnswerError,
    AgentError,
    AgentRefusedError,
    AgentUnavailableError,
    ConfigError,
)
from . import watch, wire
from .lookout import SUSPECT_AFTER, Lookout

CONNECT_TIMEOUT = 5.0
"""Seconds to reach the agent, which is on this machine or near."""
ANSWER_TIMEOUT = 10.0
"""Seconds for an answer that does not block; and for the body of one that did."""
STALLED = "agent_stalled"
LOST = frozenset({AgentUnavailableError.code, STALLED})
"""Codes of trouble in which the agent may be gone, rather than say no."""
MAX_QUOTED_BYTES = 512
"""Longest error text of the agent that is quoted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What the agent said.

    Args:
        status: HTTP status.
        index: ``X-Consul-Index``; 0 when there was none.
        body: decoded JSON, or its bytes to a raw question; the text where it is none.
        headers: the others.
    """

    status: int
    index: int
    body: Any = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


class ConsulClient:
    """
    One agent's HTTP API, for one event loop.

    Args:
        settings: address, token and TLS of the agent.
        transport: sends the requests; a network transport unless given.

    Raises:
        ConfigError: a file that the settings name cannot be used.
    """

    def __init__(
        self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.lookout = Lookout()
        self._settings = settings
        name = settings.tls_server_name
        self._extensions: dict[str, Any] = {"sni_hostname": name} if name else {}
        base, made = _network(settings) if transport is None else ("http://agent", transport)
        self._http = httpx.AsyncClient(
            base_url=base,
            transport=made,
            auth=_basic(settings.auth),
            headers={"Accept-Encoding": "identity", "User-Agent": "mesh_middleware"},
            params={
                key: value
                for key, value in (("ns", settings.namespace), ("partition", settings.partition))
                if value
            },
            trust_env=False,
            follow_redirects=False,
        )

    async def ask(self, question: wire.Question, *, index: int = 0, wait: float = 0.0) -> Answer:
        """
        Send one question.

        Args:
            index: block until the resource is newer than this; 0 asks for the current value.
            wait: seconds the agent may hold the question.

        Raises:
            AgentUnavailableError: no connection, no answer in time, or 429 or 5xx.
            AgentRefusedError: 403; the message names the permission that is missing.
            AgentAnswerError: too large, not JSON, or another status than 200 and 404.
        """
        await self.lookout.turn()
        suspicion = asyncio.get_running_loop().call_later(SUSPECT_AFTER, self.lookout.suspect)
        if index:
            suspicion.cancel()
        try:
            answer = await self._ask(question, index, wait)
        except AgentUnavailableError as error:
            self.lookout.failed(lost=error.code in LOST)
            if error.code == STALLED:
                self.lookout.suspect()
            raise
        except AgentRefusedError:
            self.lookout.answered()
            raise
        finally:
            suspicion.cancel()
        self.lookout.answered()
        return answer

    async def _ask(self, question: wire.Question, index: int, wait: float) -> Answer:
        params = dict(question.params)
        if index:
            params |= {"index": str(index), "wait": f"{wait:g}s"}
        timeout = watch.read_timeout(wait) if index else ANSWER_TIMEOUT
        try:
            # httpx limits the time of each read: an answer that drips would never end.
            async with (
                asyncio.timeout(timeout) as limit,
                self._http.stream(
                    question.method,
                    question.path,
                    params=params,
                    json=question.body,
                    headers=self._headers(),
                    timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT),
                    extensions=self._extensions,
                ) as response,
            ):
                # What a held question waits for has come: the rest is an answer like any other.
                limit.reschedule(asyncio.get_running_loop().time() + ANSWER_TIMEOUT)
                content = await self._read(response)
        except TimeoutError:
            raise AgentUnavailableError(
                f"{self._settings.agent}: no whole answer in time", STALLED
            ) from None
        except (httpx.HTTPError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise AgentUnavailableError(f"{self._settings.agent}: {reason}") from error
        if _is_foreign(question, response, content):
            kind = response.headers.get("content-type", "no type at all")
            raise AgentAnswerError(f"{self._settings.agent}: no Consul: it answers {_line(kind)}")
        return _judge(question, response, content)

    async def close(self) -> None:
        """End all connections."""
        await self._http.aclose()
        for _ in range(3):
            await asyncio.sleep(0)  # transports close in the next rounds of the loop

    async def _read(self, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise AgentAnswerError("a compressed answer to a request that accepts none")
        content = bytearray()
        async for part in response.aiter_raw():
            content += part
            if len(content) > self._settings.max_answer_bytes:
                raise AgentAnswerError(
                    f"answer over {self._settings.max_answer_bytes} bytes (max_answer_bytes)"
                )
        return bytes(content)

    def _headers(self) -> dict[str, str]:
        token, source = self._settings.token, "token"
        if self._settings.token_file:
            source = f"token_file {self._settings.token_file}"
            token = _read_token(self._settings.token_file)
        if not token:
            return {}
        if not is_header_text(token):
            # httpx would quote it, whole, in its own error.
            raise AgentError(f"{source}: a token is one line of printable ASCII", "token_unusable")
        return {wire.TOKEN: token}


def check_files(settings: Settings) -> None:
    """
    Read the files that TLS with the agent needs, before anything starts.

    Raises:
        ConfigError: one of them cannot be used.
    """
    if urlsplit(settings.agent).scheme == "https":
        _agent_context(settings)


def _is_foreign(question: wire.Question, response: httpx.Response, content: bytes) -> bool:
    # What Consul answers to a reading is JSON, and says so; a web server's page is not.
    said = response.headers.get("content-type", "")
    reading = question.method == "GET" and response.status_code == 200
    return reading and bool(content) and "json" not in said


def _judge(question: wire.Question, response: httpx.Response, content: bytes) -> Answer:
    status = response.status_code
    text = _line(content)
    if question.nothing and status in (400, 500) and question.nothing in text:
        return Answer(404, 0, text, response.headers)
    if status == 403:
        raise AgentRefusedError(f"{question.path}: {text or 'refused'}; needs {question.needs}")
    if status == 429 or status >= 500:
        code = "agent_busy" if status == 429 else "agent_failed"
        raise AgentUnavailableError(f"{question.path}: {status} {text}", code)
    if status not in (200, 404):
        raise AgentAnswerError(f"{question.path}: {status} {text}")
    body: Any = text
    if status == 200 and content and "json" in response.headers.get("content-type", ""):
        try:
            body = content if question.raw else json.loads(content)
        except (ValueError, RecursionError) as error:
            raise AgentAnswerError(f"{question.path}: not JSON: {error}") from None
    return Answer(status, _index(response), body, response.headers)


def _line(content: bytes | str) -> str:
    """What the agent says, as one line of a log."""
    text = content[:MAX_QUOTED_BYTES]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _index(response: httpx.Response) -> int:
    text = response.headers.get(wire.INDEX, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _network(settings: Settings) -> tuple[str, httpx.AsyncBaseTransport]:
    parts = urlsplit(settings.agent)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    if parts.scheme == "unix":
        path = unquote(parts.path)
        # Consul's own clients send Host: localhost there.
        return "http://localhost", httpx.AsyncHTTPTransport(uds=path, limits=limits)
    verify = _agent_context(settings) if parts.scheme == "https" else False
    return settings.agent, httpx.AsyncHTTPTransport(
        verify=verify, limits=limits, trust_env=False, socket_options=_keepalive()
    )


def _keepalive() -> list[tuple[int, int, int]]:
    """A host that died without a word is noticed in half a minute, not at the end of the wait."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def _agent_context(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=settings.ca_file or None, capath=settings.ca_path or None
        )
        if settings.client_cert:
            context.load_cert_chain(settings.client_cert, settings.client_key)
    except OSError as error:
        named = ("ca_file", "ca_path", "client_cert", "client_key")
        given = ", ".join(f"{n} = {path!r}" for n in named if (path := getattr(settings, n)))
        raise ConfigError(f"TLS files for agent {settings.agent} ({given}): {error}") from None
    if not settings.verify_agent:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _basic(auth: str) -> tuple[str, str] | None:
    if not auth:
        return None
    user, _, password = auth.partition(":")
    return user, password


def _read_token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise AgentError(f"token_file {path}: {error.strerror}", "token_unusable") from None
