"""
Requests that no sound client sends: refused whatever the policy says.

Owns what makes a method, a target or a head unsound: forms that layers read differently, or that
Envoy refuses outright. Knows nothing of rules.

Source: reference 12 ("refused whatever the policy"); security.md, sections 2 and 3.
"""

from __future__ import annotations

import re

_METHOD = re.compile(rb"[A-Z]+")
_TARGET = re.compile(rb"/[!\"$-~]*")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)(/[!\"$-~]*|\?[!\"$-~]*)?", re.IGNORECASE)


def sound_method(method: bytes) -> bool:
    """Tell whether a method is an upper-case token."""
    return _METHOD.fullmatch(method) is not None


def split_target(target: bytes) -> tuple[bytes, bytes] | None:
    """
    Find the path of a request target.

    Args:
        target: as sent: origin form, absolute form, or ``*``.

    Returns:
        Path without query, and the authority of an absolute form, else empty. ``None`` when the
        target is unsound: no leading slash, ``#``, ``%00``, control or non-ASCII bytes.
    """
    if target == b"*":
        return b"*", b""
    authority = b""
    if not _TARGET.fullmatch(target):
        found = _ABSOLUTE.fullmatch(target)
        if found is None:
            return None
        authority, target = found[1], found[2] or b"/"
        if target.startswith(b"?"):
            target = b"/" + target
    if b"%00" in target:
        return None
    return target.partition(b"?")[0], authority
