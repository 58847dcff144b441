"""
What is told of refusals: each kind once; and why a handshake failed, which servers tell nobody.

Owns the codes of handshakes that ended badly, their counts, and the memory of what was told.
Decides nothing.
"""

from __future__ import annotations

import logging
import ssl

from .gate import GateError

_log = logging.getLogger("mesh_middleware.tls")

MAX_TOLD = 1000
"""Kinds of refusal that are told; more of the same, or of others, are debug lines."""

CODES = {
    "no_certificate": "the caller showed no certificate",
    "expired": "its certificate, or one that leads to a root, has expired",
    "not_yet_valid": "its certificate, or one that leads to a root, is not valid yet",
    "untrusted": "no root in use vouches for its certificate, or OpenSSL refuses it otherwise",
    "identity": "the gate refuses it: names, usages, times, trust domain, `deny_in_handshake`",
    "not_ready": "we have no leaf or roots yet",
    "tls": "no TLS, too old a version, no common cipher, or hung up",
}
"""Every code, and what it means."""

_VERIFY_CODES = {9: "not_yet_valid", 10: "expired"}
"""Source: OpenSSL, X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


class Told:
    """Remembers what was told; in bounds, since callers decide how many kinds there are."""

    def __init__(self) -> None:
        self._kinds: set[tuple[str, ...]] = set()

    def is_first(self, *kind: str) -> bool:
        """Whether this is the first of its kind, and to be told."""
        if kind in self._kinds or len(self._kinds) >= MAX_TOLD:
            return False
        self._kinds.add(kind)
        return True


class Refusals:
    """
    The refused handshakes of one server.

    Attributes:
        counts: how many, per code.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._told = Told()

    def note(self, error: ssl.SSLError, joined: bool) -> None:
        """
        Count a refusal, and tell it where it is the first of its kind.

        Args:
            error: what the handshake raised.
            joined: whether there are leaf and roots.
        """
        code, detail = explain(error) if joined else ("not_ready", "")
        self.counts[code] = self.counts.get(code, 0) + 1
        # Whoever scans ports is no news.
        level = logging.INFO if code == "tls" else logging.WARNING
        first = self._told.is_first(code, detail)
        _log.log(level if first else logging.DEBUG, "handshake refused: %s: %s", code, detail)


def explain(error: ssl.SSLError) -> tuple[str, str]:
    """
    Tell why a handshake failed.

    Returns:
        One of `CODES`, and a line for people.
    """
    if isinstance(error, GateError):
        return "identity", error.rule
    # Only OpenSSL's own errors have the details.
    reason = getattr(error, "reason", None)
    if isinstance(error, ssl.SSLCertVerificationError):
        code = _VERIFY_CODES.get(getattr(error, "verify_code", 0), "untrusted")
        return code, str(getattr(error, "verify_message", reason))
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "no_certificate", CODES["no_certificate"]
    return "tls", str(reason or type(error).__name__)
