"""URLs as they may be shown: without user, password, query and fragment, which can be secrets."""

from __future__ import annotations

from urllib.parse import urlsplit


def redacted(url: str) -> str:
    """
    Make a URL fit for logs, status and errors.

    Args:
        url: any text.

    Returns:
        Scheme, host, port and path; ``...`` for what was left out; ``(a URL)`` where *url* is none.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "(a URL)"
    if host and ":" in host:
        host = f"[{host}]"
    place = f"{host or ''}{f':{port}' if port else ''}"
    hidden = "...@" if "@" in parts.netloc else ""
    more = "?..." if parts.query or parts.fragment else ""
    return f"{parts.scheme}://{hidden}{place}{parts.path}{more}"
