"""
What happens where no intention matches: how a service learns the cluster's default.

Consul tells it nowhere plainly. Owns the two ways that can be trusted: the agent's own settings,
and its verdict on a source that nobody knows.

Source: reference 4.7.
"""

from __future__ import annotations

import uuid
from dataclasses import replace

from ..exceptions import AgentRefusedError
from ..identity import ServiceId
from . import wire
from .client import ConsulClient


async def ask_self(client: ConsulClient) -> bool | None:
    """
    Ask the agent for its settings, which takes ``agent:read``.

    Returns:
        ``True`` for allow, ``False`` for deny; ``None`` when the token may not ask, or the answer
        does not tell.

    Raises:
        AgentError: no answer.
    """
    try:
        answer = await client.ask(wire.self_question())
    except AgentRefusedError:
        return None
    return wire.parse_self_default(answer.body)


async def ask_about_nobody(client: ConsulClient, own: ServiceId) -> bool | None:
    """
    Ask whether a service that does not exist may call us, which takes ``service:write`` on *own*.

    Returns:
        As `ask_self`; ``None`` when a wildcard intention answers in the default's place.

    Raises:
        AgentError: no answer.
    """
    nobody = replace(own, name=f"mesh-middleware-probe-{uuid.uuid4().hex}")
    answer = await client.ask(wire.authorize_question(own.name, nobody.uri))
    return wire.parse_probe(answer.body, answer.headers.get(wire.DEFAULT_POLICY))
