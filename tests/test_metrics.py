"""The figures of a mesh in Prometheus' text format."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

from mesh_middleware import Mesh, Reason
from mesh_middleware.metrics import METRICS, render_metrics

LINE = re.compile(
    r'(\w+)\{service="((?:[^"\\]|\\.)*)"(?:,(?:reason|code)="(\w+)")?\} (-?[\d.e+-]+)'
)


def test_every_metric_is_written_once_with_type_and_help() -> None:
    """Each name has its HELP and TYPE, and one sample; decisions and events one per code."""
    mesh = Mesh("tax")
    mesh.counts[Reason.NO_PEER] = 2
    mesh.counts[Reason.INTENTION_ALLOW] = 1
    mesh.shadowed[Reason.DEFAULT_DENY] = 3
    mesh._belief.note("leaf_rejected", "expired")
    mesh._refusals.note(ssl.SSLError("no TLS"), joined=True)
    lines = render_metrics(mesh.status()).splitlines()
    samples = [found for line in lines if (found := LINE.fullmatch(line))]
    assert len(samples) + 2 * len(METRICS) == len(lines)
    assert {found[1] for found in samples} == set(METRICS)
    decisions = {found[3]: found[4] for found in samples if found[3]}
    counts = {"no_peer": "2", "intention_allow": "1", "default_deny": "3", "leaf_rejected": "1"}
    counts["tls"] = "1"
    assert decisions == counts


def test_service_name_is_quoted() -> None:
    """A name with quotes and backslashes cannot break out of its label."""
    text = render_metrics(Mesh('a"b\\c').status())
    assert 'service="a\\"b\\\\c"' in text
    assert all(LINE.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))


def test_every_metric_is_in_the_reference() -> None:
    """The page on status and metrics names each of them."""
    page = Path(__file__).parent.parent / "docs" / "reference" / "status.md"
    text = page.read_text(encoding="utf-8")
    assert [name for name in METRICS if f"`{name}`" not in text] == []
