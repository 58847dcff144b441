"""
``mesh demo``: order -> invoice -> tax, live.

Owns the options and the exit code. What is shown is in `steps`, on what in `agents` and `services`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    consul: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="A consul binary: the same on a private real Consul it starts."
        ),
    ] = None,
    use_existing: Annotated[
        bool,
        typer.Option(
            "--use-existing",
            help="The agent that CONSUL_HTTP_ADDR or MESH_AGENT names; leaves out CA rotation and "
            "stopping the agent.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the evidence there; - is stdout."),
    ] = None,
) -> int:
    """Watch three services join a mesh, live."""
    from . import run

    if consul and use_existing:
        raise typer.BadParameter("--consul and --use-existing exclude each other")
    return run.demo(consul=consul, use_existing=use_existing, json_file=json_file)
