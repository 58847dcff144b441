"""
The tree of ``mesh`` subcommands.

Owns names and order. A subcommand's module is imported here for its options only; what it needs to
run it imports when it is called.
"""

from __future__ import annotations

import typer

from . import agent, demo, explain, intention, status

app = typer.Typer(
    name="mesh",
    help="Join a Consul service mesh from Python, with no sidecar.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("agent")(agent.agent)
app.add_typer(intention.app, name="intention")
app.command("explain")(explain.explain)
app.command("status")(status.status)
