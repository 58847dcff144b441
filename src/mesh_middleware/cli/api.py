"""
The agent's HTTP API as commands use it: one call, one answer, errors in one line.

Owns the address and token a command talks with, and turns refusals into this package's errors.
Knows no endpoint: `rules` and the subcommands name them. The mesh itself does not come this way,
it has its own client that blocks and retries; a command tries once.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from ..config import Settings, load_settings
from ..exceptions import (
    AgentAnswerError,
    AgentError,
    AgentRefusedError,
    AgentUnavailableError,
    ConfigError,
)


class NoSuchThingError(AgentError):
    """The agent answered 404: no such path, or no such thing below it."""


class RejectedError(AgentError):
    """The agent understood and said no: a 400, or the 500 Consul gives for a bad write."""


class AgentApi:
    """
    One agent, spoken to by a command.

    Args:
        address: base address, ``http://host:port``.
        token: ACL token; never shown.
        auth: ``user:password`` for HTTP Basic; never shown.
        timeout: seconds for one call.
        verify: how an ``https`` agent is verified.
        transport: another way to the agent than the network.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        auth: str = "",
        timeout: float = 10.0,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.address = address.rstrip("/")
        self._client = httpx.Client(
            base_url=self.address,
            headers={"X-Consul-Token": token} if token else {},
            timeout=timeout,
            auth=_basic(auth),
            verify=verify,
            trust_env=False,
            transport=transport,
        )

    @property
    def port(self) -> int:
        """TCP port of the address."""
        url = httpx.URL(self.address)
        return url.port or (443 if url.scheme == "https" else 80)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if isinstance(error, AgentAnswerError | NoSuchThingError):
            # Whatever read the answer knows what is wrong with it, but not who gave it.
            said = f"{self.address} does not answer as a Consul agent does: {error}"
            raise type(error)(said) from None

    def close(self) -> None:
        """Close the connections; again is fine."""
        self._client.close()

    def get(self, path: str, **query: str) -> Any:
        """Read *path*; see `call`."""
        return self.call("GET", path, None, **query)

    def table(self, path: str) -> dict[str, Any]:
        """
        Read the JSON object at *path*; see `call`.

        Raises:
            AgentAnswerError: it is something else.
        """
        found = self.get(path)
        if not isinstance(found, dict):
            raise AgentAnswerError(f"GET {path}: no JSON object")
        return found

    def put(self, path: str, body: object = None, **query: str) -> Any:
        """Write *body* to *path*; see `call`."""
        return self.call("PUT", path, body, **query)

    def call(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """
        Send one request.

        Args:
            method: HTTP method.
            path: below the agent's address, ``/v1/...``.
            body: sent as JSON; ``None`` sends none.
            query: query parameters.

        Returns:
            The decoded JSON, or ``None`` for an empty body.

        Raises:
            AgentUnavailableError: no connection, no answer in time, or no leader.
            AgentRefusedError: 403.
            NoSuchThingError: 404.
            RejectedError: any other status above 399.
            AgentAnswerError: a body that is not JSON.
        """
        try:
            answer = self._client.request(method, path, json=body, params=query)
        except httpx.HTTPError as error:
            raise AgentUnavailableError(
                f"no answer from the agent at {self.address}: {error or type(error).__name__}"
            ) from None
        _check(answer, f"{method} {path}")
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            raise AgentAnswerError(f"{method} {path}: the answer is not JSON") from None


def connect(agent: str | None = None, *, timeout: float = 10.0) -> AgentApi:
    """
    Make the API of the agent that the option or the environment names.

    Args:
        agent: the ``--agent`` option; before ``MESH_AGENT``, before ``CONSUL_HTTP_ADDR``.
        timeout: seconds for one call.

    Raises:
        ConfigError: the address is none, or a file that the environment names cannot be read.
    """
    address = f"http://{agent}" if agent and "://" not in agent else agent
    settings = load_settings({"service": "mesh", "agent": address})
    try:
        token = Path(settings.token_file).read_text().strip() if settings.token_file else ""
        verify = _verify(settings) if settings.agent.startswith("https:") else True
    except (OSError, ValueError) as error:
        raise ConfigError(f"a file that the settings name cannot be read: {error}") from None
    address, transport = settings.agent, None
    if address.startswith("unix://"):
        transport = httpx.HTTPTransport(uds=address.removeprefix("unix://"))
        address = "http://localhost"
    return AgentApi(
        address,
        token=token or settings.token,
        auth=settings.auth,
        timeout=timeout,
        verify=verify,
        transport=transport,
    )


def _basic(auth: str) -> tuple[str, str] | None:
    user, _, password = auth.partition(":")
    return (user, password) if user else None


def _verify(settings: Settings) -> ssl.SSLContext | bool:
    if not settings.verify_agent:
        return False
    context = ssl.create_default_context(
        cafile=settings.ca_file or None, capath=settings.ca_path or None
    )
    if settings.client_cert:
        context.load_cert_chain(settings.client_cert, settings.client_key)
    return context


def _check(answer: httpx.Response, asked: str) -> None:
    if answer.status_code < 400:
        return
    text = " ".join(answer.text.split())[:300] or f"status {answer.status_code}"
    if answer.status_code == 403:
        raise AgentRefusedError(f"the agent refuses the token: {text}")
    if answer.status_code == 404:
        raise NoSuchThingError(f"{asked}: 404: {text}")
    if "No cluster leader" in text or answer.status_code in (429, 503):
        raise AgentUnavailableError(f"the agent cannot answer now: {text}")
    raise RejectedError(text)
