"""``python -m mesh_middleware.dev``: the dev agent as a process of its own."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from ..exceptions import MeshError
from .agent import DevAgent

_STOPS = {signal.SIGINT, signal.SIGTERM}


def main(arguments: list[str] | None = None) -> int:
    """
    Run an agent until SIGINT or SIGTERM.

    Returns:
        Exit code: 0, or 1 when it cannot start.
    """
    parser = argparse.ArgumentParser(prog="python -m mesh_middleware.dev", description=__doc__)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--datacenter", default="dc1")
    parser.add_argument("--default-policy", choices=("allow", "deny"), default="allow")
    parser.add_argument("--state", type=Path, help="file that keeps CA and intentions (0600)")
    chosen = parser.parse_args(arguments)
    # Blocked before the agent's thread exists: it inherits the mask, and sigwait gets them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        return _run(chosen)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(chosen: argparse.Namespace) -> int:
    try:
        agent = DevAgent(
            port=chosen.port,
            host=chosen.host,
            datacenter=chosen.datacenter,
            default_policy=chosen.default_policy,
            state=chosen.state,
        ).start()
    except MeshError as error:
        print(f"mesh agent: {error}", file=sys.stderr)
        return 1
    with agent:
        print(f"dev agent: {agent.url}, trust domain {agent.trust_domain}", flush=True)
        signal.sigwait(_STOPS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
