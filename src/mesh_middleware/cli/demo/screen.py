"""
How the demo looks: each step told, shown and judged while it happens.

Owns words and colours. Knows nothing of how a step is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .evidence import Evidence, Outcome, Step

_COLOURS: Mapping[Outcome, str] = {
    Outcome.HELD: "green",
    Outcome.FAILED: "bold red",
    Outcome.NOT_OFFERED: "yellow",
    Outcome.LEFT_OUT: "yellow",
    Outcome.NOT_REACHED: "red",
}


class Screen:
    """
    The demo's output.

    Args:
        console: where it goes.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def opening(self, agent: str, url: str) -> None:
        """Say what is about to happen."""
        self._console.print("[bold]mesh demo[/]: shop -> order -> invoice -> tax")
        self._console.print(
            "Three Python web services join a service mesh by themselves: no sidecar. "
            "Each gets a certificate from the agent, speaks mutual TLS, knows who calls "
            "it, and lets in whom the intentions allow."
        )
        self.line(f"the agent: {agent} at {url}")

    def step(self, number: int, title: str, why: str) -> None:
        """Open a step."""
        self._console.print()
        self._console.print(f"[bold cyan]{number}[/] [bold]{escape(title)}[/]")
        # Broken where this terminal ends, and nowhere else.
        self._console.print(Padding(Text(" ".join(why.split()), style="dim"), (0, 0, 0, 2)))

    def line(self, text: str) -> None:
        """Show one thing that happened."""
        self._console.print(f"  {escape(text)}", soft_wrap=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something takes a while."""
        if not self._console.is_terminal:
            self.line(f"{text} ...")
            yield
            return
        with self._console.status(escape(text)):
            yield

    def ended(self, step: Step) -> None:
        """Close a step with its verdict."""
        colour = _COLOURS[step.outcome]
        self._console.print(
            f"  [{colour}]{step.outcome}[/] ({step.seconds:.1f} s): {escape(step.says)}",
            soft_wrap=True,
        )

    def log(self, name: str, text: str) -> None:
        """Show the end of what a process printed."""
        self._console.print(f"  [dim]last lines of {escape(name)}:[/]")
        for line in text.splitlines():
            self._console.print(f"    [dim]{escape(line)}[/]", soft_wrap=True)

    def closing(self, evidence: Evidence, seconds: float) -> None:
        """Show the table of all steps and the verdict."""
        table = Table(title="What was shown", title_justify="left", show_lines=False)
        table.add_column("", justify="right")
        table.add_column("step")
        table.add_column("outcome")
        table.add_column("what it showed", overflow="fold")
        for step in evidence.steps:
            colour = _COLOURS[step.outcome]
            table.add_row(
                str(step.number),
                escape(step.title),
                f"[{colour}]{step.outcome}[/]",
                escape(step.says),
            )
        self._console.print()
        self._console.print(table)
        verdict = "[green]all of it held[/]" if evidence.held else "[bold red]not all of it held[/]"
        self._console.print(f"{verdict}, in {seconds:.1f} s")
