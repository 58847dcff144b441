"""``mesh agent``: the dev agent in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..dev import DevAgent


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
    import threading

    from ..dev import DevAgent
    from ..exceptions import ConfigError

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        running = DevAgent(
            port=port, datacenter=datacenter, default_policy=default_policy, state=state
        )
        with running:
            _introduce(running, state, default_policy)
            stop.wait()
    except OSError as error:
        raise ConfigError(f"the dev agent cannot listen on port {port}: {error}") from None
    print("dev agent: stopped", flush=True)
    return 0


def _introduce(running: DevAgent, state: Path | None, default_policy: str) -> None:
    print(f"dev agent: {running.url} (for development; loopback only)")
    print(f"  trust domain    {running.trust_domain}")
    print(f"  default policy  {default_policy}")
    print(f"  state           {state or 'in memory: gone when this process ends'}")
    print("  stop it with Ctrl-C", flush=True)
