"""
Sends to the agent what `wire` and `watch` say.

Owns the connections to one agent: address, TLS, token, bounds on time and size. Knows nothing of
what the answers mean. Never follows a redirect, never uses a proxy, never shows the token.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from ..config import Settings, is_header_text
from ..exceptions import (
    AgentAnswerError,
    AgentError,
    AgentRefusedError,
    AgentUnavailableError,
    ConfigError,
)
from ..regular_file import demand_regular, read_regular_file
from ..rhythm import USUAL, Rhythm
from . import watch, wire
from .connections import Connections, Head, Request, Way
from .lookout import SUSPECT_AFTER, Lookout

if TYPE_CHECKING:
    import httpx

STALLED = "agent_stalled"
LOST = frozenset({AgentUnavailableError.code, STALLED})
"""Codes of trouble in which the agent may be gone, rather than say no."""
MAX_TOKEN_FILE = 64 * 1024
"""Bytes of the largest token file that is read."""
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
        headers: all of them, by lower-case name.
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
        rhythm: how long an answer may take.

    Raises:
        ConfigError: a file that the settings name cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        transport: httpx.AsyncBaseTransport | None = None,
        rhythm: Rhythm = USUAL,
    ) -> None:
        self.lookout = Lookout()
        self._settings, self._rhythm = settings, rhythm
        self._way = _way(settings, transport)
        self._params = {
            key: value
            for key, value in (("ns", settings.namespace), ("partition", settings.partition))
            if value
        }
        self._fixed = [("Accept-Encoding", "identity"), ("User-Agent", "mesh_middleware")]
        if settings.auth:
            user, _, password = settings.auth.partition(":")
            basic = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._fixed.append(("Authorization", f"Basic {basic}"))

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
        due = watch.longest_held(wait) if index else 0.0
        suspicion = asyncio.get_running_loop().call_later(due + SUSPECT_AFTER, self.lookout.suspect)
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
        answer_timeout = self._rhythm.answer_timeout
        held = watch.read_timeout(wait, self._rhythm.read_slack)
        timeout = held if index else answer_timeout
        request = self._request(question, index, wait)
        try:
            async with (
                asyncio.timeout(timeout) as limit,
                self._way.exchange(request, self._settings.max_answer_bytes) as answering,
            ):
                head = await answering.head()
                if head.headers.get("content-encoding", "identity") != "identity":
                    raise AgentAnswerError("a compressed answer to a request that accepts none")
                # What a held question waits for has come: the rest is an answer like any other.
                limit.reschedule(asyncio.get_running_loop().time() + answer_timeout)
                content = await answering.body()
        except TimeoutError:
            raise AgentUnavailableError(
                f"{self._settings.agent}: no whole answer in time", STALLED
            ) from None
        except OSError as error:
            raise AgentUnavailableError(f"{self._settings.agent}: {say_why(error)}") from error
        except RuntimeError as error:
            # At the end of the interpreter names are looked up no more, nor threads begun.
            if "shutdown" not in str(error):
                raise
            raise AgentUnavailableError(f"{self._settings.agent}: this process ends") from error
        if _is_foreign(question, head, content):
            kind = head.headers.get("content-type", "no type at all")
            raise AgentAnswerError(f"{self._settings.agent}: no Consul: it answers {_line(kind)}")
        return _judge(question, head, content)

    def _request(self, question: wire.Question, index: int, wait: float) -> Request:
        params = {**self._params, **question.params}
        if index:
            params |= {"index": str(index), "wait": f"{wait:g}s"}
        target = f"{question.path}?{urlencode(params)}" if params else question.path
        headers = [*self._fixed, *self._token()]
        if question.body is None:
            return Request(question.method, target, headers)
        body = json.dumps(question.body, separators=(",", ":")).encode()
        headers.append(("Content-Type", "application/json"))
        return Request(question.method, target, headers, body)

    async def close(self) -> None:
        """End all connections."""
        await self._way.close()

    def _token(self) -> list[tuple[str, str]]:
        token, source = self._settings.token, "token"
        if self._settings.token_file:
            source = f"token_file {self._settings.token_file}"
            token = _read_token(self._settings.token_file)
        if not token:
            return []
        if not is_header_text(token):
            # h11 would quote it, whole, in its own error.
            raise AgentError(f"{source}: a token is one line of printable ASCII", "token_unusable")
        return [(wire.TOKEN, token)]


def say_why(error: Exception) -> str:
    """Say in one line why the agent was not reached, with the way out where it is ours."""
    reason = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        reason += "; ca_file, or CONSUL_CACERT, is the file that vouches for the agent"
    return reason


def check_files(settings: Settings) -> None:
    """
    Read the files that TLS with the agent needs, before anything starts.

    Raises:
        ConfigError: one of them cannot be used.
    """
    if urlsplit(settings.agent).scheme == "https":
        agent_context(settings)


def _is_foreign(question: wire.Question, head: Head, content: bytes) -> bool:
    # What Consul answers to a reading is JSON, and says so; a web server's page is not.
    said = head.headers.get("content-type", "")
    reading = question.method == "GET" and head.status == 200
    return reading and bool(content) and "json" not in said


def _judge(question: wire.Question, head: Head, content: bytes) -> Answer:
    status = head.status
    text = _line(content)
    if question.nothing and status in (400, 500) and question.nothing in text:
        return Answer(404, 0, text, head.headers)
    if status == 403:
        raise AgentRefusedError(f"{question.path}: {text or 'refused'}; needs {question.needs}")
    if status == 429 or status >= 500:
        code = "agent_busy" if status == 429 else "agent_failed"
        raise AgentUnavailableError(f"{question.path}: {status} {text}", code)
    if status not in (200, 404):
        raise AgentAnswerError(f"{question.path}: {status} {text}")
    body: Any = text
    if status == 200 and content and "json" in head.headers.get("content-type", ""):
        try:
            body = content if question.raw else json.loads(content)
        except (ValueError, RecursionError) as error:
            raise AgentAnswerError(f"{question.path}: not JSON: {error}") from None
    return Answer(status, _index(head), body, head.headers)


def _line(content: bytes | str) -> str:
    """What the agent says, as one line of a log."""
    text = content[:MAX_QUOTED_BYTES]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _index(head: Head) -> int:
    text = head.headers.get(wire.INDEX, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _way(settings: Settings, transport: httpx.AsyncBaseTransport | None) -> Way:
    if transport is not None:
        from .transport import TransportWay  # and with it httpx, which nobody else here needs

        return TransportWay(transport)
    secure = urlsplit(settings.agent).scheme == "https"
    context = agent_context(settings) if secure else None
    return Connections(settings.agent, context, settings.tls_server_name)


def agent_context(settings: Settings) -> ssl.SSLContext:
    """
    Make the context of TLS with an ``https`` agent.

    Raises:
        ConfigError: a file that the settings name cannot be used.
    """
    try:
        for path in (settings.ca_file, settings.client_cert, settings.client_key):
            if path:
                demand_regular(path)
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


def _read_token(path: str) -> str:
    try:
        content = read_regular_file(path, MAX_TOKEN_FILE)
    except OSError as error:
        raise AgentError(f"token_file {path}: {error.strerror}", "token_unusable") from None
    if len(content) > MAX_TOKEN_FILE:
        raise AgentError(f"token_file {path}: over {MAX_TOKEN_FILE} bytes", "token_unusable")
    return content.decode("utf-8", "replace").strip()
