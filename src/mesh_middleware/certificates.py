"""
Leaf and roots, and what a certificate says about its holder.

Owns reading X.509-SVIDs: the one SPIFFE ID, the usages, the times, and whether a chain leads to a
root. Does no I/O and asks no clock: moments come in as *now*. Private keys pass through `KeyPair`
only, whose ``repr`` hides them.

Source: SPIFFE X509-SVID, sections 2 to 5; RFC 5280, 4.2.1; Consul reference 2.1 and 2.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from .exceptions import CertificateError, IdentityError
from .identity import ServiceId, SpiffeId, parse_service_id, parse_spiffe_id

MAX_CHAIN = 10
"""Longest chain walked from a leaf to a root: real meshes have up to four certificates."""

Role = Literal["client", "server"]
"""The part the holder plays in the handshake: decides which extended usage it needs."""

_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for certificates and keys it cannot read: no common base."""

_USAGES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}


@dataclass(frozen=True, slots=True)
class Peer:
    """
    The other end of one TLS connection, as its certificate names it.

    Args:
        id: its SPIFFE ID, any form.
        serial_number: of its certificate, lower-case hexadecimal.
        not_after: when the certificate ends, aware UTC.
    """

    id: SpiffeId
    serial_number: str
    not_after: datetime
    expires: float = field(init=False, repr=False, compare=False)
    """`not_after` in seconds since the epoch: compared on every request."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "expires", self.not_after.timestamp())


@dataclass(frozen=True, slots=True)
class Leaf:
    """
    Our certificate, without its key.

    Args:
        id: the service it names.
        chain_pem: leaf first, then what leads to older or farther roots.
        serial_number: lower-case hexadecimal.
        not_before: first moment of validity, aware UTC.
        not_after: last moment of validity, aware UTC.
    """

    id: ServiceId
    chain_pem: str = field(repr=False)
    serial_number: str
    not_before: datetime
    not_after: datetime
    expires: float = field(init=False, repr=False, compare=False)
    """`not_after` in seconds since the epoch: compared on every request."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "expires", self.not_after.timestamp())


@dataclass(frozen=True, slots=True)
class KeyPair:
    """
    A leaf together with its private key, on the way from the agent to OpenSSL.

    Args:
        leaf: the public half.
        key_pem: the private key; hidden from ``repr``.
    """

    leaf: Leaf
    key_pem: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Roots:
    """
    The CA certificates trusted now, active or not.

    Args:
        trust_domain: authority that all IDs under these roots carry.
        certificates: PEM of each root, in the agent's order.
        active: fingerprint Consul gives the root that signs now.
    """

    trust_domain: str
    certificates: tuple[str, ...] = field(repr=False)
    active: str

    @property
    def pem(self) -> str:
        """All of them as one text; the last line of each is ended, which agents may leave out."""
        return "".join(f"{pem.rstrip()}\n" for pem in self.certificates)


def load_certificates(pem: str) -> list[x509.Certificate]:
    """
    Read the certificates of a PEM text.

    Raises:
        CertificateError: none is in it, or one cannot be read.
    """
    try:
        return x509.load_pem_x509_certificates(pem.encode("ascii"))
    except _UNREADABLE as error:
        raise CertificateError(f"PEM certificates expected: {error}") from None


def read_root(pem: str) -> str:
    """
    Read what the agent lists as one root: one certificate or several, each an anchor of its own.

    An anchor need not be self-signed: an offline company root above Consul's CA is not listed. So
    nothing but its own basic constraints says that it may sign.

    Returns:
        The text.

    Raises:
        CertificateError: unreadable, or one of them is no CA.

    Source: RFC 5280, 4.2.1.9 and 6.1.1; RFC 7468, 5.
    """
    for certificate in load_certificates(pem):
        if not _may_sign(certificate):
            name = certificate.subject.rfc4514_string()
            raise CertificateError(f"a root that is no CA (basic constraints, CA:TRUE): {name!r}")
    return pem


def read_leaf(chain_pem: str) -> Leaf:
    """
    Read our own certificate chain.

    Args:
        chain_pem: leaf first.

    Raises:
        CertificateError: unreadable, or it breaks a rule of X.509-SVID leaves; or a key is in it.
    """
    if "PRIVATE KEY-----" in chain_pem:
        # OpenSSL takes the first it finds for the leaf's; one it cannot decrypt, now and then not.
        raise CertificateError("our leaf: there is a private key among its certificates")
    certificate = load_certificates(chain_pem)[0]
    peer = _describe(certificate)
    for role in ("client", "server"):
        check_usage(certificate, role)
    try:
        service = parse_service_id(peer.id.uri)
    except IdentityError as error:
        raise CertificateError(f"our leaf: {error}") from None
    not_before = certificate.not_valid_before_utc
    return Leaf(service, chain_pem, peer.serial_number, not_before, peer.not_after)


def read_peer(der: bytes, role: Role, now: datetime) -> Peer:
    """
    Read who the other end is, from the certificate it showed.

    OpenSSL has verified the chain by then; this demands what OpenSSL does not know: exactly one
    URI name, one of Consul's forms, the usages of a leaf, and validity by *our* clock.

    Args:
        der: the certificate.
        role: what the peer is in this handshake.
        now: this moment, aware UTC.

    Raises:
        CertificateError: it breaks one of these rules; the message names it.

    Source: SPIFFE X509-SVID 4 and 5.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
    except _UNREADABLE as error:
        raise CertificateError(f"unreadable certificate: {error}") from None
    peer = _describe(certificate)
    check_usage(certificate, role)
    check_validity(certificate, now)
    return peer


def read_spiffe_id(certificate: x509.Certificate) -> SpiffeId:
    """
    Read the one SPIFFE ID of a certificate.

    Raises:
        CertificateError: it has no URI name, more than one, or one of another form.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    except _UNREADABLE as error:
        raise CertificateError(f"unreadable extensions: {error}") from None
    if len(uris) != 1:
        raise CertificateError(f"{len(uris)} URI names; an X.509-SVID has exactly one")
    try:
        return parse_spiffe_id(uris[0])
    except IdentityError as error:
        raise CertificateError(str(error)) from None


def check_usage(certificate: x509.Certificate, role: Role) -> None:
    """
    Demand the usages of a leaf.

    Raises:
        CertificateError: it is a CA's, may sign certificates, lacks digitalSignature, or its
            extended usages leave out *role*.

    Source: SPIFFE X509-SVID 4.1 to 4.4 and 5.2.
    """
    extensions = certificate.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise CertificateError("CA:TRUE; a CA certificate identifies no workload")
    except x509.ExtensionNotFound:
        pass
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise CertificateError("no key usage; a leaf has digitalSignature") from None
    if usage.key_cert_sign or usage.crl_sign:
        raise CertificateError("key usage of a CA (keyCertSign or cRLSign)")
    if not usage.digital_signature:
        raise CertificateError("key usage without digitalSignature")
    try:
        extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if _USAGES[role] not in extended:
        raise CertificateError(f"extended key usage without TLS {role} authentication")


def check_validity(certificate: x509.Certificate, now: datetime) -> None:
    """
    Demand that *now* lies within the certificate's times.

    Raises:
        CertificateError: it does not.
    """
    if now < certificate.not_valid_before_utc:
        raise CertificateError(f"not valid before {certificate.not_valid_before_utc:%FT%TZ}")
    if now > certificate.not_valid_after_utc:
        raise CertificateError(f"expired {certificate.not_valid_after_utc:%FT%TZ}")


def check_key(pair: KeyPair) -> None:
    """
    Demand that the key is the certificate's.

    Raises:
        CertificateError: unreadable, or another key. The message holds no part of it.
    """
    try:
        key = serialization.load_pem_private_key(pair.key_pem.encode("ascii"), password=None)
    except (*_UNREADABLE, TypeError):
        raise CertificateError("the private key cannot be read") from None
    certificate = load_certificates(pair.leaf.chain_pem)[0]
    try:
        public = certificate.public_key()
    except _UNREADABLE as error:
        raise CertificateError(f"unreadable public key in the leaf: {error}") from None
    if _public_bytes(key.public_key()) != _public_bytes(public):
        raise CertificateError(f"the private key is not that of leaf {pair.leaf.serial_number}")


def check_chain(chain_pem: str, roots: Roots, now: datetime) -> None:
    """
    Demand that a chain leads from its leaf to one of the roots.

    Args:
        chain_pem: leaf first; the others in any order.
        roots: what is trusted.
        now: this moment, aware UTC.

    Raises:
        CertificateError: no root signs it, or a certificate on the way is not valid now.

    Source: RFC 5280, 6.1, without policies and name constraints, which OpenSSL judges in the
    peer's handshake; this only keeps a useless leaf from replacing a useful one.
    """
    leaf, *others = load_certificates(chain_pem)
    check_validity(leaf, now)
    anchors = [root for pem in roots.certificates for root in load_certificates(pem)]
    if not _leads_to(leaf, _valid(others, now), _valid(anchors, now), MAX_CHAIN):
        raise CertificateError(f"no root of {roots.trust_domain} signs this leaf")


def fingerprint(pem: str) -> str:
    """SHA-1 of a certificate's DER in colons, as Consul names its roots."""
    digest = load_certificates(pem)[0].fingerprint(hashes.SHA1())
    return digest.hex(":")


def utc_now() -> datetime:
    """This moment, aware UTC: the default clock where one is an argument."""
    return datetime.now(UTC)


def _describe(certificate: x509.Certificate) -> Peer:
    serial = f"{certificate.serial_number:x}"
    return Peer(read_spiffe_id(certificate), serial, certificate.not_valid_after_utc)


def _valid(certificates: Iterable[x509.Certificate], now: datetime) -> list[x509.Certificate]:
    return [c for c in certificates if c.not_valid_before_utc <= now <= c.not_valid_after_utc]


def _leads_to(
    subject: x509.Certificate,
    others: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    depth: int,
) -> bool:
    if any(_signs(anchor, subject) for anchor in anchors):
        return True
    if depth == 0:
        return False
    return any(
        _signs(issuer, subject)
        and _leads_to(issuer, [c for c in others if c is not issuer], anchors, depth - 1)
        for issuer in others
    )


def _signs(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    if issuer.subject != subject.issuer or not _may_sign(issuer):
        return False
    try:
        subject.verify_directly_issued_by(issuer)
    except (*_UNREADABLE, InvalidSignature, TypeError):
        return False
    return True


def _may_sign(issuer: x509.Certificate) -> bool:
    try:
        return issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (*_UNREADABLE, x509.ExtensionNotFound):
        return False


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
