"""
The figures of a mesh as Prometheus reads them.

Owns the names of the metrics. Serves nothing: an application gives the text to its own endpoint,
or to whoever collects.

Source: Prometheus, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

METRICS = {
    "mesh_ready": ("gauge", "1 while handshakes succeed and requests are judged."),
    "mesh_registered": ("gauge", "1 while this process keeps the registration."),
    "mesh_outage_budget_seconds": ("gauge", "How long calls go on without the agent."),
    "mesh_generation": ("counter", "Changes of leaf or roots."),
    "mesh_snapshot_version": ("counter", "Swaps of the snapshot."),
    "mesh_intentions": ("gauge", "Intentions about this service."),
    "mesh_troubles": ("gauge", "Resources that the agent does not answer for."),
    "mesh_clock_skew_seconds": ("gauge", "Our clock minus the agent's."),
    "mesh_events_total": ("counter", "Notes and troubles with the agent, per code."),
    "mesh_decisions_total": ("counter", "Requests judged, per reason."),
    "mesh_shadowed_total": ("counter", "Requests denied, and let through in shadow mode."),
    "mesh_handshakes_refused_total": ("counter", "Handshakes that ended badly, per code."),
}
"""Every metric: its type and what it says."""


_COUNTED = {
    "mesh_events_total": ("events", "code"),
    "mesh_decisions_total": ("decisions", "reason"),
    "mesh_shadowed_total": ("shadowed", "reason"),
    "mesh_handshakes_refused_total": ("handshakes_refused", "code"),
}


def render_metrics(status: Mapping[str, Any]) -> str:
    """
    Write the figures of `Mesh.status` in Prometheus' text format.

    Args:
        status: what `Mesh.status` returned.

    Returns:
        The text, to be served as `CONTENT_TYPE`.
    """
    service = _quoted(status["service"])
    lines: list[str] = []
    for name, (kind, says) in METRICS.items():
        lines += [f"# HELP {name} {says}", f"# TYPE {name} {kind}"]
        if name in _COUNTED:
            key, label = _COUNTED[name]
            lines += [
                f'{name}{{service="{service}",{label}="{each}"}} {count}'
                for each, count in sorted(status[key].items())
            ]
        else:
            lines.append(f'{name}{{service="{service}"}} {_value(name, status):.15g}')
    return "\n".join(lines) + "\n"


def _value(name: str, status: Mapping[str, Any]) -> float:
    values: dict[str, Any] = {
        "mesh_ready": status["ready"],
        "mesh_registered": status["registered"],
        "mesh_outage_budget_seconds": status["outage_budget_seconds"],
        "mesh_generation": status["generation"],
        "mesh_snapshot_version": status["version"],
        "mesh_intentions": status["intentions"] or 0,
        "mesh_troubles": len(status["troubles"]),
        "mesh_clock_skew_seconds": status["clock_skew_seconds"],
    }
    return float(values[name])


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
