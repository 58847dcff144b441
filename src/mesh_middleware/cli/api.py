"""
The agent's HTTP API as commands use it: one call, one answer, errors in one line.

Owns the address and token a command talks with, and turns refusals into this package's errors.
Knows no endpoint: `rules` and the subcommands name them. The mesh itself does not come this way,
it has its own client that blocks and retries; a command tries once.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import httpx

from ..config import load_settings
from ..consul.client import agent_context, say_why
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
        address: ``http://host:port``, ``https://host:port`` or ``unix:///file``.
        token: ACL token; never shown.
        auth: ``user:password`` for HTTP Basic; never shown.
        timeout: seconds for one call.
        verify: how an ``https`` agent is verified.
        server_name: verified in its certificate, in place of the address's.
        params: of every question.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        auth: str = "",
        timeout: float = 10.0,
        verify: ssl.SSLContext | bool = True,
        server_name: str = "",
        params: Mapping[str, str] | None = None,
    ) -> None:
        self.address = address.rstrip("/")
        file = unquote(urlsplit(address).path) if address.startswith("unix:") else None
        self._extensions = {"sni_hostname": server_name} if server_name else {}
        self._client = httpx.Client(
            base_url="http://localhost" if file else self.address,
            headers={"X-Consul-Token": token} if token else {},
            params=params,
            timeout=timeout,
            auth=_basic(auth),
            verify=verify,
            trust_env=False,
            transport=httpx.HTTPTransport(uds=file) if file else None,
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
            answer = self._client.request(
                method, path, json=body, params=query, extensions=self._extensions
            )
        except httpx.HTTPError as error:
            raise AgentUnavailableError(
                f"no answer from the agent at {self.address}: {say_why(error)}"
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
    except (OSError, ValueError) as error:
        raise ConfigError(f"the token file cannot be read: {error}") from None
    places = {"ns": settings.namespace, "partition": settings.partition}
    return AgentApi(
        settings.agent,
        token=token or settings.token,
        auth=settings.auth,
        timeout=timeout,
        verify=agent_context(settings) if settings.agent.startswith("https:") else True,
        server_name=settings.tls_server_name,
        params={name: value for name, value in places.items() if value},
    )


def _basic(auth: str) -> tuple[str, str] | None:
    user, _, password = auth.partition(":")
    return (user, password) if user else None


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
