"""
A plugin for mesh_middleware that writes one JSON line per decision.

Owns the choice made by ``MESH_DECISION_LOG``: where lines go, or that there are none. What a line
says is in `log`, how it is written in `sink`.
"""

from __future__ import annotations

import os

from .log import DecisionLog
from .sink import FileSink, LoggerSink, Sink, StderrSink

__all__ = ["DecisionLog", "make_plugin", "plugin"]

VARIABLE = "MESH_DECISION_LOG"


class Idle:
    """What is registered when no log was asked for: it has no hooks, so nothing is called."""


def make_plugin(destination: str) -> DecisionLog | Idle:
    """
    Make the plugin.

    Args:
        destination: ``stderr``, ``logger``, the name of a file, or nothing for no log.
    """
    name = destination.strip()
    return DecisionLog(_sink(name)) if name else Idle()


def _sink(name: str) -> Sink:
    if name == "stderr":
        return StderrSink()
    return LoggerSink() if name == "logger" else FileSink(name)


plugin = make_plugin(os.environ.get(VARIABLE, ""))
"""What the entry point names; the environment is read once, at import."""
