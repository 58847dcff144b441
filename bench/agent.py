"""
The dev agent of a run, in a process of its own: ``python -m bench.agent FOLDER``.

Owns the policy that is measured: 20 intentions about ``tax`` under default deny, 19 sources that
may call and `CALLER`, which has HTTP permissions. Writes certificates and its address into the
folder; changes leaf and roots as the lines of standard input say, and ends with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mesh_middleware.dev import DevAgent

SERVICE = "tax"
CALLER = "invoice"
PLAIN_CALLER = "report"
"""Has an intention without permissions."""
STRANGER = "stranger"
"""Has none."""
OTHERS = 19

PERMISSIONS: list[dict[str, Any]] = [
    {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
    {"Action": "allow", "HTTP": {"PathExact": "/rates", "Methods": ["GET"]}},
    {"Action": "allow", "HTTP": {"PathPrefix": "/books/", "Methods": ["GET", "POST"]}},
]


def write_policy(agent: DevAgent) -> None:
    """Write the 20 intentions."""
    agent.set_protocol(SERVICE, "http")
    agent.allow(PLAIN_CALLER, SERVICE)
    for number in range(OTHERS - 1):
        agent.allow(f"service-{number:02}", SERVICE)
    agent.permissions(CALLER, SERVICE, PERMISSIONS)


def write_certificates(agent: DevAgent, folder: Path) -> None:
    """Write chains and keys of everyone who is not in the mesh natively."""
    (folder / "roots.pem").write_text(agent.roots_pem)
    for name in (SERVICE, CALLER, PLAIN_CALLER, STRANGER):
        chain, key = agent.issue(name)
        (folder / f"{name}.pem").write_text(chain)
        (folder / f"{name}.key").write_text(key)
        (folder / f"{name}.key").chmod(0o600)


def main() -> None:
    """Serve until standard input ends."""
    folder = Path(sys.argv[1])
    with DevAgent(default_policy="deny") as agent:
        write_policy(agent)
        write_certificates(agent, folder)
        ready = folder / "agent.json"
        partial = folder / "agent.json.partial"
        partial.write_text(json.dumps({"url": agent.url, "trust_domain": agent.trust_domain}))
        partial.rename(ready)
        steps = {"root": agent.rotate_ca, "leaf": lambda: agent.renew(SERVICE),
                 "prune": agent.prune_roots}  # fmt: skip
        for line in sys.stdin:
            steps[line.strip()]()


if __name__ == "__main__":
    main()
