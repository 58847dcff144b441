"""
Certificates for tests: right ones, and each kind of wrong one.

Owns the options that bend a leaf out of shape. Everything it makes is signed by the agent's own
active root, or by a foreign one, so that a test fails a verifier on exactly one rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from .ca import (
    BACKDATED,
    RootCa,
    authority,
    builder,
    key_to_pem,
    key_usage,
    make_key,
    make_root,
    to_pem,
)

_USAGES = {
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """
    How a test certificate is to look; the defaults are those of a sound leaf.

    Args:
        uris: its URI names; empty for none.
        not_before, not_after: validity.
        ca: CA:TRUE, though it stands where a leaf stands.
        cert_sign: with the keyCertSign usage.
        usages: extended key usages among ``client`` and ``server``; empty leaves the extension out.
        key: ``"ec"`` or ``"rsa"``.
        dns: further DNS names.
        foreign: signed by a root that nobody trusts, for the same trust domain.
    """

    uris: Sequence[str]
    not_before: datetime
    not_after: datetime
    ca: bool = False
    cert_sign: bool = False
    usages: Sequence[str] = ("client", "server")
    key: str = "ec"
    dns: Sequence[str] = ()
    foreign: bool = False


def forge(root: RootCa, cluster: str, serial: int, now: datetime, shape: Shape) -> tuple[str, str]:
    """
    Make a certificate of *shape*.

    Returns:
        The chain and the key, PEM.
    """
    if shape.foreign:
        root = RootCa(*make_root(cluster, serial, now - timedelta(hours=2)))
    key = make_key(shape.key, 2048 if shape.key == "rsa" else 256)
    made = builder(
        x509.Name([]), root.certificate.subject, key.public_key(), serial,
        shape.not_before, shape.not_after,
    )  # fmt: skip
    made = made.add_extension(key_usage(leaf=True, cert_sign=shape.cert_sign), critical=True)
    made = made.add_extension(x509.BasicConstraints(shape.ca, None), critical=True)
    made = made.add_extension(authority(root.key), critical=False)
    if shape.usages:
        usages = [_USAGES[usage] for usage in shape.usages]
        made = made.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in shape.uris]
    names += [x509.DNSName(name) for name in shape.dns]
    if names:
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=True)
    certificate = made.sign(root.key, hashes.SHA256())
    return to_pem(certificate) + root.cross_signed, key_to_pem(key)


def validity(
    now: datetime, lifetime: timedelta, not_before: datetime | None
) -> tuple[datetime, datetime]:
    """Start and end of a certificate issued *now*, unless it is to start at another moment."""
    start = (not_before or now - BACKDATED).replace(microsecond=0)
    return start, start + lifetime
