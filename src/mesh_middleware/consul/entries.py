"""
Consul's JSON to what a service is judged by beside its intentions: protocol and normalization.

Owns the config entries ``service-defaults`` and ``proxy-defaults`` (of which the protocol counts)
and ``mesh`` (request normalization). What cannot be read becomes the strictest value, or an error
where there is none. Sends nothing.

Source: reference 5.3, 5.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..exceptions import AgentAnswerError
from ..intentions.model import Normalization

DEFAULT_PROTOCOL = "tcp"
"""Protocol of a service that no entry speaks of. Source: Consul, service-defaults."""

NORMALIZATION_FIELDS = {
    "InsecureDisablePathNormalization": "paths are judged as they are sent",
    "MergeSlashes": "repeated slashes are merged",
    "PathWithEscapedSlashesAction": "what is done about `%2f` and `%5c`; a redirect is a refusal",
    "HeadersWithUnderscoresAction": "what is done about `_` in header names",
}

_SLASHES: dict[str, Literal["keep", "reject", "redirect", "unescape"]] = {
    "": "keep",
    "IMPLEMENTATION_SPECIFIC_DEFAULT": "keep",
    "KEEP_UNCHANGED": "keep",
    "REJECT_REQUEST": "reject",
    "UNESCAPE_AND_REDIRECT": "redirect",
    "UNESCAPE_AND_FORWARD": "unescape",
}
_UNDERSCORES: dict[str, Literal["allow", "reject", "drop"]] = {
    "": "allow",
    "ALLOW": "allow",
    "REJECT_REQUEST": "reject",
    "DROP_HEADER": "drop",
}
_STRICTEST = Normalization(escaped_slashes="reject", underscores="reject")


def parse_protocol(own: object, shared: object) -> str:
    """
    Find the protocol of a service.

    Args:
        own: its ``service-defaults`` entry, or ``None``.
        shared: the ``proxy-defaults`` entry, or ``None``.

    Returns:
        Lower case: ``tcp``, ``http``, ``http2``, ``grpc``.

    Raises:
        AgentAnswerError: an entry has another shape.

    Source: reference 5.3; the service's own entry wins.
    """
    protocol = text_of(entry_of(own, "service-defaults"), "Protocol")
    if not protocol:
        config = entry_of(entry_of(shared, "proxy-defaults").get("Config"), "proxy-defaults Config")
        protocol = text_of(config, "protocol")
    return protocol.lower() or DEFAULT_PROTOCOL


def parse_normalization(entry: object) -> Normalization:
    """
    Read the request normalization of a ``mesh`` entry.

    Args:
        entry: the entry, or ``None`` when there is none.

    Returns:
        Consul's defaults where the entry says nothing, the strictest choice for an action that is
        not known.

    Source: reference 5.6.
    """
    found: Any = entry
    for key in ("HTTP", "Incoming", "RequestNormalization"):
        if found is None:
            return Normalization()
        if not isinstance(found, Mapping):
            return _STRICTEST
        found = found.get(key)
    if found is None:
        return Normalization()
    if not isinstance(found, Mapping) or not set(found) <= set(NORMALIZATION_FIELDS):
        return _STRICTEST
    return Normalization(
        paths=found.get("InsecureDisablePathNormalization") is not True,
        merge_slashes=found.get("MergeSlashes") is True,
        escaped_slashes=_SLASHES.get(
            str(found.get("PathWithEscapedSlashesAction") or ""), "reject"
        ),
        underscores=_UNDERSCORES.get(
            str(found.get("HeadersWithUnderscoresAction") or ""), "reject"
        ),
    )


def entry_of(value: object, what: str) -> Mapping[str, Any]:
    """
    Take *value* for an object; empty where there is none.

    Raises:
        AgentAnswerError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise AgentAnswerError(f"{what}: an object is expected")
    return value


def text_of(fields: Mapping[str, Any], key: str) -> str:
    """
    Take a text from an object; empty where there is none.

    Raises:
        AgentAnswerError: it is something else.
    """
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AgentAnswerError(f"{key}: a text is expected")
    return value
