"""``mesh agent``: the dev agent in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..dev import Answer, DevAgent, Request

_NO_CHANGE = ("/v1/agent/check/", "/v1/agent/connect/authorize")


def agent(
    port: Annotated[int, typer.Option(help="Port on loopback; 0 takes a free one.")] = 8500,
    state: Annotated[
        Path | None, typer.Option(help="File that keeps CA, services and intentions.")
    ] = None,
    default_policy: Annotated[
        Literal["allow", "deny"], typer.Option(help="For pairs without an intention.")
    ] = "allow",
    datacenter: Annotated[str, typer.Option(help="Name of the datacenter.")] = "dc1",
) -> int:
    """Run the Consul-compatible dev agent."""
    import signal

    from ..dev import DevAgent

    # Blocked before the agent's thread exists, which inherits it: the signal comes to sigwait.
    awaited = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        running = DevAgent(
            port=port, datacenter=datacenter, default_policy=default_policy, state=state
        )
        running.app.interpose = _tell_writes
        with running:
            _introduce(running, state, default_policy)
            signal.sigwait(awaited)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    print("dev agent: stopped", flush=True)
    return 0


def _introduce(running: DevAgent, state: Path | None, default_policy: str) -> None:
    print(f"dev agent: {running.url} (for development; loopback only)")
    print(f"  trust domain    {running.trust_domain}")
    print(f"  default policy  {default_policy}")
    print(f"  state           {state or 'in memory: gone when this process ends'}")
    print("  stop it with Ctrl-C", flush=True)


async def _tell_writes(request: Request) -> Answer | None:
    # Readings and heartbeats come all the time; a line is for what changes something.
    if request.method != "GET" and not request.path.startswith(_NO_CHANGE):
        query = "&".join(
            f"{name}={value}" for name in request.query for value in _of(request, name)
        )
        line = f"{request.method} {request.path}{'?' if query else ''}{query}"
        print("".join(c if c.isprintable() else "?" for c in line), flush=True)
    return None


def _of(request: Request, name: str) -> list[str]:
    return ["(hidden)"] if name == "token" else request.query[name]
