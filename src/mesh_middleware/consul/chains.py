"""
Questions about traffic configuration, and the short answer who has any.

Owns the paths of discovery chains and lists of config entries, and the reading of such a list as
names. The chain itself is read in `mesh_middleware.routing.reading`. Sends nothing.

Source: reference 4.5 and 7.
"""

from __future__ import annotations

from urllib.parse import quote

from ..exceptions import AgentAnswerError
from .wire import Question


def chain_question(service: str, datacenter: str | None) -> Question:
    """Ask for the discovery chain of *service*."""
    return Question(
        f"/v1/discovery-chain/{quote(service, safe='')}",
        f'service:read on "{service}"',
        params={"compile-dc": datacenter} if datacenter else {},
    )


def list_question(kind: str) -> Question:
    """Ask for all entries of *kind* that we may read."""
    return Question(f"/v1/config/{quote(kind, safe='')}", "service:read")


def parse_names(body: object) -> frozenset[str]:
    """
    Read a list of entries as the names they are for, in lower case.

    Raises:
        AgentAnswerError: it is no such list.
    """
    if body is None:
        return frozenset()
    if not isinstance(body, list) or not all(isinstance(entry, dict) for entry in body):
        raise AgentAnswerError("config entries: a list of objects is expected")
    return frozenset(str(entry.get("Name", "")).lower() for entry in body)
