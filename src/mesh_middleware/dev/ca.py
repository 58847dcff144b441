"""
The dev agent's certificate authority: roots, rotation with cross-signing, leaves.

Owns the keys of the roots and the counter of serial numbers. Makes certificates of the shape that
Consul's built-in CA makes. Knows no HTTP, no index, no clock: time is an argument. For development
only: the keys live in memory, and in the state file when there is one.

Source: Consul CA, observed certificates (reference 2.1 to 2.3).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..identity import ServiceId
from .http import Refusal

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

ROOT_LIFETIME = timedelta(days=3650)
CROSS_LIFETIME = timedelta(days=7)
BACKDATED = timedelta(seconds=60)
"""A leaf starts this long before it is issued, for clocks that lag. Source: reference 2.2."""

_CURVES: dict[int, ec.EllipticCurve] = {
    224: ec.SECP224R1(), 256: ec.SECP256R1(), 384: ec.SECP384R1(), 521: ec.SECP521R1(),
}  # fmt: skip
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_BOTH_WAYS = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


def make_key(kind: str = "ec", bits: int = 256) -> PrivateKey:
    """
    Generate a private key.

    Raises:
        Refusal: a kind or size that Consul does not offer.
    """
    if kind == "ec" and bits in _CURVES:
        return ec.generate_private_key(_CURVES[bits])
    if kind == "rsa" and bits in (2048, 4096):
        return rsa.generate_private_key(public_exponent=65537, key_size=bits)
    raise Refusal(500, f"invalid CA config: {kind} keys cannot have {bits} bits")


def key_to_pem(key: PrivateKey) -> str:
    """The key as Consul writes it: SEC1 (``EC PRIVATE KEY``) or PKCS#1."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


def to_pem(certificate: x509.Certificate) -> str:
    """The certificate as PEM text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def colon_hex(data: bytes) -> str:
    """Bytes as ``0a:ff:...``, the way Consul prints IDs and serial numbers."""
    return data.hex(":")


def serial_text(serial: int) -> str:
    """A serial number as Consul prints it: big-endian bytes, no leading zero byte."""
    return colon_hex(serial.to_bytes((serial.bit_length() + 7) // 8 or 1, "big"))


def key_id(key: PrivateKey | Any) -> bytes:
    """Subject key identifier: SHA-256 of the public key information, 32 bytes."""
    public: Any = key.public_key() if hasattr(key, "public_key") else key
    return hashlib.sha256(
        public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).digest()


def key_usage(*, leaf: bool, cert_sign: bool = False) -> x509.KeyUsage:
    """The key usages of a leaf, or of a root."""
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=leaf,
        data_encipherment=leaf,
        key_agreement=leaf,
        key_cert_sign=cert_sign or not leaf,
        crl_sign=not leaf,
        content_commitment=False,
        encipher_only=False,
        decipher_only=False,
    )


def builder(
    subject: x509.Name, issuer: x509.Name, public: Any, serial: int, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    """A certificate with its basic fields and the key identifier set."""
    made = x509.CertificateBuilder(issuer, subject, public, serial, start, end)
    return made.add_extension(x509.SubjectKeyIdentifier(key_id(public)), critical=False)


def authority(key: PrivateKey) -> x509.AuthorityKeyIdentifier:
    """The authority key identifier of what *key* signs."""
    return x509.AuthorityKeyIdentifier(key_id(key), None, None)


@dataclass(frozen=True, slots=True)
class RootCa:
    """
    A root with its key.

    Args:
        cross_signed: the same root signed by the one before it, PEM; empty for the first.
        retired: when it stopped being the active one.
    """

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)
    cross_signed: str = ""
    retired: datetime | None = None
    created_index: int = 0

    @property
    def id(self) -> str:
        """Colon-hex SHA-1 of the certificate, as Consul names roots."""
        return colon_hex(self.certificate.fingerprint(hashes.SHA1()))

    @property
    def pem(self) -> str:
        """The certificate as PEM."""
        return to_pem(self.certificate)


@dataclass(frozen=True, slots=True)
class IssuedLeaf:
    """
    A leaf as handed out: the chain begins with it, cross-signed roots follow.

    Args:
        root_id: root that signed it.
    """

    service: str
    uri: str
    chain_pem: str
    key_pem: str = field(repr=False)
    serial: str
    not_before: datetime
    not_after: datetime
    root_id: str


def make_root(
    cluster: str, serial: int, now: datetime, *, key: PrivateKey | None = None
) -> tuple[x509.Certificate, PrivateKey]:
    """Make a self-signed root for the trust domain ``<cluster>.consul``."""
    key = key or make_key()
    label = "".join(secrets.choice(_BASE36) for _ in range(8))
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"pri-{label}.consul.ca.{cluster[:8]}.consul")]
    )
    start = now.replace(microsecond=0)
    made = builder(name, name, key.public_key(), serial, start, start + ROOT_LIFETIME)
    return _as_ca(made, cluster, authority(key)).sign(key, hashes.SHA256()), key


def _as_ca(
    made: x509.CertificateBuilder, cluster: str, signer: x509.AuthorityKeyIdentifier
) -> x509.CertificateBuilder:
    uri = x509.UniformResourceIdentifier(f"spiffe://{cluster}.consul")
    return (
        made.add_extension(key_usage(leaf=False), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(signer, critical=False)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    )


def cross_sign(
    new: x509.Certificate, old: RootCa, cluster: str, serial: int, now: datetime
) -> x509.Certificate:
    """The root *new* again, issued by *old*: peers that only know *old* can verify its leaves."""
    start = now.replace(microsecond=0) - BACKDATED
    made = builder(
        new.subject,
        old.certificate.subject,
        new.public_key(),
        serial,
        start,
        start + CROSS_LIFETIME,
    )
    return _as_ca(made, cluster, authority(old.key)).sign(old.key, hashes.SHA256())


def make_leaf(
    root: RootCa, identity: ServiceId, serial: int, now: datetime, ttl: timedelta
) -> IssuedLeaf:
    """Issue a leaf for *identity*, with a new P-256 key."""
    key = make_key()
    start = now.replace(microsecond=0) - BACKDATED
    end = start + ttl
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
    certificate = (
        builder(x509.Name([]), root.certificate.subject, key.public_key(), serial, start, end)
        .add_extension(key_usage(leaf=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_BOTH_WAYS), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(authority(root.key), critical=False)
        .add_extension(name, critical=True)
        .sign(root.key, hashes.SHA256())
    )
    return IssuedLeaf(
        identity.name, identity.uri, to_pem(certificate) + root.cross_signed, key_to_pem(key),
        serial_text(serial), start, end, root.id,
    )  # fmt: skip


def load_root(certificate_pem: str, key_pem: str) -> tuple[x509.Certificate, PrivateKey]:
    """
    Read a root and its key that an operator configured.

    Raises:
        Refusal: unreadable, not a CA, or the two do not belong together.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        key = serialization.load_pem_private_key(key_pem.encode(), None)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise Refusal(500, f"invalid CA config: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise Refusal(500, "invalid CA config: the key is neither EC nor RSA")
    if not constraints.value.ca or key_id(certificate.public_key()) != key_id(key):
        raise Refusal(500, "invalid CA config: RootCert is no CA, or not of PrivateKey")
    return certificate, key


class CertificateAuthority:
    """
    The roots of one cluster, newest last, and who signs now.

    Args:
        cluster: UUID; the trust domain is ``<cluster>.consul``.
        now: moment of the first root.
    """

    def __init__(self, cluster: str, now: datetime) -> None:
        self.cluster = cluster
        # Consul's first root usually has a number like this; what counts is that none comes twice.
        self.serial = 6
        self.roots: list[RootCa] = []
        certificate, key = make_root(cluster, self.next_serial(), now)
        self.roots.append(RootCa(certificate, key))

    @property
    def trust_domain(self) -> str:
        """Authority of every SPIFFE ID issued here."""
        return f"{self.cluster}.consul"

    @property
    def active(self) -> RootCa:
        """The root that signs now."""
        return self.roots[-1]

    def next_serial(self) -> int:
        """A serial number never used before."""
        self.serial += 1
        return self.serial

    def rotate(
        self,
        now: datetime,
        *,
        index: int = 0,
        pair: tuple[x509.Certificate, PrivateKey] | None = None,
        key: PrivateKey | None = None,
        cross: bool = True,
    ) -> RootCa:
        """
        Make a new root active; the old one stays trusted.

        Args:
            pair: certificate and key to use; else one is made.
            key: key for the root to be made; else one is made.
            cross: let the old root sign the new one.
        """
        if pair is None:
            pair = make_root(self.cluster, self.next_serial(), now, key=key)
        certificate, key = pair
        old = self.active
        bridge = (
            to_pem(cross_sign(certificate, old, self.cluster, self.next_serial(), now))
            if cross
            else ""
        )
        self.roots[-1] = RootCa(old.certificate, old.key, old.cross_signed, now, old.created_index)
        self.roots.append(RootCa(certificate, key, bridge, None, index))
        return self.active

    def prune(self, retired_before: datetime) -> bool:
        """Forget roots that were rotated out before that moment; whether any was."""
        kept = [r for r in self.roots if r.retired is None or r.retired >= retired_before]
        changed = len(kept) < len(self.roots)
        self.roots = kept
        return changed

    def issue(self, identity: ServiceId, now: datetime, ttl: timedelta) -> IssuedLeaf:
        """Issue a leaf under the active root."""
        return make_leaf(self.active, identity, self.next_serial(), now, ttl)

    def dump(self) -> dict[str, Any]:
        """Everything, keys included, as JSON values: for the state file."""
        return {
            "cluster": self.cluster,
            "serial": self.serial,
            "roots": [
                {
                    "certificate": root.pem,
                    "key": key_to_pem(root.key),
                    "cross_signed": root.cross_signed,
                    "retired": root.retired.isoformat() if root.retired else None,
                    "created_index": root.created_index,
                }
                for root in self.roots
            ],
        }

    @classmethod
    def load(cls, saved: dict[str, Any]) -> CertificateAuthority:
        """What `dump` gave, again."""
        made = cls.__new__(cls)
        made.cluster, made.serial, made.roots = saved["cluster"], saved["serial"], []
        for item in saved["roots"]:
            certificate, key = load_root(item["certificate"], item["key"])
            retired = datetime.fromisoformat(item["retired"]) if item["retired"] else None
            made.roots.append(
                RootCa(certificate, key, item["cross_signed"], retired, item["created_index"])
            )
        return made
