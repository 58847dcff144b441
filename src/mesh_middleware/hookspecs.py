"""
The hooks: what a plugin may watch, answer and tighten.

A plugin is a module or object with functions marked by `mesh_middleware.plugins.hookimpl`, found
through the entry-point group ``mesh_middleware`` or given as ``plugins=``. It sees values of
layer 0 and never a key. Hooks marked *watch* are told; what they raise is logged and changes
nothing. `mesh_resolve` answers, and `mesh_restrict` only tightens: doubt, a raised error
included, is no.

Hooks run where the thing happens: `mesh_decision`, `mesh_restrict` and `mesh_attempt` on the
request's own thread or event loop, so they must not block; the others on the watcher thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from .identity import SpiffeId
    from .intentions import Decision, RequestFacts
    from .routing.report import AttemptReport
    from .snapshot import Snapshot

PROJECT = "mesh_middleware"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as the implementation of a hook: ``@hookimpl``."""


@hookspec
def mesh_startup(service: str, agent: str) -> None:
    """
    The mesh starts in this process (watch).

    Args:
        service: name of the service this process is.
        agent: address of the agent, without token.
    """


@hookspec
def mesh_registration(service_id: str, registered: bool) -> None:
    """
    This process has registered its service instance, or taken it away (watch).

    Args:
        service_id: Consul's ID of the instance, such as ``tax-10.0.0.5-5003``.
        registered: whether it is registered now.
    """


@hookspec(firstresult=True)
def mesh_resolve(upstream: str, datacenter: str | None) -> Sequence[Any] | None:
    """
    Tell where an upstream lives; the first plugin with an opinion wins.

    Args:
        upstream: service name.
        datacenter: where to look; ``None`` means our own.

    Returns:
        `mesh_middleware.resolve.Endpoint` values, address and expected SPIFFE ID together; an empty
        sequence means "no instance"; ``None`` is no opinion.
    """


@hookspec
def mesh_snapshot(old: Snapshot, new: Snapshot) -> None:
    """
    The snapshot was swapped (watch). Neither holds a private key.

    Args:
        old: what held until now.
        new: what holds from now on.
    """


@hookspec
def mesh_restrict(source: SpiffeId, facts: RequestFacts) -> bool | None:
    """
    Say no to a request that the intentions allow; asked only about those.

    Args:
        source: SPIFFE ID of the peer that sent the request.
        facts: the request as it is judged.

    Returns:
        ``False`` denies, ``None`` and ``True`` are no opinion. Anything else, a coroutine say, is
        an error; and an error denies.
    """


@hookspec
def mesh_decision(decision: Decision, source: SpiffeId | None, facts: RequestFacts) -> None:
    """
    A request was judged (watch).

    Args:
        decision: verdict, reason and the intention behind it.
        source: SPIFFE ID of the peer; ``None`` when it showed none.
        facts: the request as it was judged.
    """


@hookspec
def mesh_attempt(attempt: AttemptReport) -> None:
    """
    An attempt of a call to an upstream has ended: with the head of an answer, or without (watch).

    Args:
        attempt: where it went and what became of it.
    """
