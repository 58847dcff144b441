"""
What an established connection stands on, and when it stands no more.

Owns the judgement that is repeated while a connection lives: the time of the peer's certificate,
the root that vouched for it, the greatest age. Knows nothing of contexts or handshakes.
"""

from __future__ import annotations

import _ssl
import math
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from .certificates import Peer


class Anchors(Protocol):
    """As much of a generation as is needed here."""

    anchors: frozenset[bytes]
    """The roots it trusts, in DER."""


class Standing:
    """
    What an established connection to our server stands on: a certificate's time, and a root.

    Servers see the connection end at its next bytes after the peer's certificate has expired, or
    after Consul has dropped the root that vouched for it; peers then connect anew.

    Args:
        began: the generation that judged the handshake.
        newest: returns the generation of this moment.
        max_age: seconds after which it ends in any case.
    """

    __slots__ = ("_anchor", "_deadline", "_generation", "_max_age", "_newest", "_over")

    def __init__(self, began: Anchors, newest: Callable[[], Anchors], max_age: float) -> None:
        self._max_age = max_age
        self._newest = newest
        self._generation = began
        self._anchor: bytes | None = None
        self._deadline = math.inf
        self._over = False

    def begin(self, tls: ssl.SSLObject, peer: Peer, now: datetime) -> None:
        """The handshake is done: remember what the connection stands on."""
        self._anchor = _anchor_of(tls)
        left = (peer.not_after - now).total_seconds()
        self._deadline = time.monotonic() + min(left, self._max_age)

    def over(self) -> bool:
        """Whether the connection has lost what it stood on."""
        newest = self._newest()
        if newest is not self._generation:
            self._generation = newest
            self._over = self._anchor not in newest.anchors
        return self._over or time.monotonic() > self._deadline


def _anchor_of(tls: ssl.SSLObject) -> bytes | None:
    """The root that vouched for the peer, in DER; ``None`` when it cannot be known (resumption)."""
    public = getattr(tls, "get_verified_chain", None)
    if public is not None:  # Python 3.13
        chain = public()
        return chain[-1] if chain else None
    kept = tls._sslobj.get_verified_chain()  # type: ignore[attr-defined]
    anchor: bytes | None = kept[-1].public_bytes(_ssl.ENCODING_DER) if kept else None
    return anchor
