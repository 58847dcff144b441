"""
What a refused caller sees: problem details that help nobody attack.

Owns status, type and title of each refusal; ASGI and WSGI doors send them. The reason stays in
log and metric.

Source: RFC 9457; security.md, CVE-2024-10086 (a content type, no reflected input).
"""

from __future__ import annotations

import json

from .intentions import Decision, Reason

DENIED = "urn:mesh-middleware:denied"
NOT_READY = "urn:mesh-middleware:not-ready"
UNSOUND = "urn:mesh-middleware:unsound-request"
RETRY_AFTER = 1
"""Seconds after which a caller may try again while there is no policy."""

Headers = list[tuple[str, str]]

_KINDS = {
    400: (UNSOUND, "Bad Request"),
    403: (DENIED, "Forbidden"),
    503: (NOT_READY, "Service Unavailable"),
}


def refusal(decision: Decision) -> tuple[int, Headers, bytes]:
    """
    Make the answer to a request that is not allowed.

    Returns:
        Status, headers and body.
    """
    status = decision.status if decision.status in _KINDS else 403
    kind, title = _KINDS[status]
    if decision.reason is Reason.NO_PEER:
        title = "Mutual TLS required"
    body = json.dumps({"type": kind, "title": title, "status": status}).encode()
    headers = [
        ("content-type", "application/problem+json"),
        ("content-length", str(len(body))),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
    ]
    if status == 503:
        headers.append(("retry-after", str(RETRY_AFTER)))
    if decision.reason in (Reason.PEER_EXPIRED, Reason.NO_PEER):
        headers.append(("connection", "close"))
    return status, headers, body
