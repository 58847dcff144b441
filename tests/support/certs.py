"""
Certificates of every kind, right and wrong, made at run time.

Owns a small CA with every knob turned by hand; shares no code with the package or its dev agent, so
that a mistake there is not repeated here.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh_middleware.certificates import KeyPair, Roots, read_leaf

TRUST_DOMAIN = "9361e7cf-537e-691c-5263-92d523793c73.consul"
OTHER_DOMAIN = "0d8f7c3a-1111-2222-3333-444455556666.consul"
NOW = datetime.now(UTC).replace(microsecond=0)
"""The moment this test run started: certificates are made around it."""
HOUR = timedelta(hours=1)

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_EKUS = {
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "any": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    "email": ExtendedKeyUsageOID.EMAIL_PROTECTION,
}
_USAGES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
    "key_cert_sign crl_sign encipher_only decipher_only"
).split()

LEAF_USAGE = ("digital_signature", "key_encipherment", "data_encipherment", "key_agreement")


def service_uri(name: str, trust_domain: str = TRUST_DOMAIN) -> str:
    """The SPIFFE ID of a service of the tests."""
    return f"spiffe://{trust_domain}/ns/default/dc/dc1/svc/{name}"


def make_key(kind: str = "ec") -> Key:
    """Generate a private key; the one RSA key is made once, since it takes long."""
    return _rsa_key() if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())


@cache
def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def key_pem(key: Key) -> str:
    """A private key as Consul writes it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


@dataclass(frozen=True)
class Made:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Key
    chain: str = ""

    @property
    def pem(self) -> str:
        """The certificate alone."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        """The certificate as it goes over the wire."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def chain_pem(self) -> str:
        """The certificate and what follows it."""
        return self.pem + self.chain

    @property
    def key_pem(self) -> str:
        """The private key."""
        return key_pem(self.key)

    @property
    def pair(self) -> KeyPair:
        """As the mesh holds it."""
        return KeyPair(read_leaf(self.chain_pem), self.key_pem)


class Ca:
    """
    A certificate authority.

    Args:
        trust_domain: named in its own URI and, by default, in its leaves'.
        issuer: the CA above it; itself unless given.
        key: kind of its key.
        name: common name.
        extensions: further extensions of its own certificate.
    """

    def __init__(
        self,
        trust_domain: str = TRUST_DOMAIN,
        *,
        issuer: Ca | None = None,
        key: str = "ec",
        name: str = "Consul CA",
        not_before: datetime = NOW - HOUR,
        not_after: datetime = NOW + 24 * HOUR,
        extensions: Sequence[x509.ExtensionType] = (),
        ca: bool = True,
    ) -> None:
        self.trust_domain = trust_domain
        self.key = make_key(key)
        self.name = x509.Name(
            [
                x509.NameAttribute(
                    NameOID.COMMON_NAME, f"{name} {x509.random_serial_number():x}"[:60]
                )
            ]
        )
        self._window = (not_before, not_after)
        self._extensions = tuple(extensions)
        self._ca = ca
        self.issuer = issuer
        self.certificate = self._certified_by(issuer or self)

    def _certified_by(self, issuer: Ca) -> x509.Certificate:
        builder = _builder(self.name, issuer, self.key, *self._window)
        uri = x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}")
        for extension, critical in (
            (x509.BasicConstraints(self._ca, None), True),
            (usage("digital_signature", "key_cert_sign", "crl_sign"), True),
            (x509.SubjectAlternativeName([uri]), False),
            *((extension, True) for extension in self._extensions),
        ):
            builder = builder.add_extension(extension, critical)
        return builder.sign(issuer.key, hashes.SHA256())

    @property
    def pem(self) -> str:
        """Its certificate."""
        return Made(self.certificate, self.key).pem

    def cross_signed_by(self, old: Ca) -> str:
        """Its name and key under *old*, as Consul makes it at a rotation."""
        return Made(self._certified_by(old), self.key).pem

    def roots(self, *others: Ca, trust_domain: str = "") -> Roots:
        """As the mesh trusts it, together with *others*."""
        pems = tuple(ca.pem for ca in (self, *others))
        return Roots(trust_domain or self.trust_domain, pems, "00:11")

    def leaf(
        self,
        name: str = "tax",
        *,
        uris: Sequence[str] | None = None,
        not_before: datetime = NOW - HOUR,
        not_after: datetime = NOW + HOUR,
        ca: bool | None = False,
        usages: Iterable[str] | None = LEAF_USAGE,
        extended: Iterable[str] | None = ("client", "server"),
        key: str = "ec",
        dns: Iterable[str] = (),
        others: Iterable[x509.GeneralName] = (),
        extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
        chain: str | None = None,
    ) -> Made:
        """
        Issue a leaf; sound unless told otherwise. ``None`` leaves an extension out.

        Args:
            name: service in its one URI name, unless *uris* are given.
            chain: PEM after the leaf; this CA's own certificate when it is an intermediate.
        """
        uris = [service_uri(name, self.trust_domain)] if uris is None else uris
        names: list[x509.GeneralName] = [
            *(x509.UniformResourceIdentifier(uri) for uri in uris),
            *(x509.DNSName(each) for each in dns),
            *others,
        ]
        wanted: list[tuple[x509.ExtensionType, bool]] = list(extensions)
        if names:
            wanted.append((x509.SubjectAlternativeName(names), True))
        if ca is not None:
            wanted.append((x509.BasicConstraints(ca, None), True))
        if usages is not None:
            wanted.append((usage(*usages), True))
        if extended is not None:
            wanted.append((x509.ExtendedKeyUsage([_EKUS[each] for each in extended]), False))
        made = make_key(key)
        builder = _builder(x509.Name([]), self, made, not_before, not_after)
        for extension, critical in wanted:
            builder = builder.add_extension(extension, critical)
        if chain is None:
            chain = self.pem if self.issuer else ""
        return Made(builder.sign(self.key, hashes.SHA256()), made, chain)


def usage(*on: str) -> x509.KeyUsage:
    """A key usage with only the named bits set."""
    return x509.KeyUsage(**{name: name in on for name in _USAGES})


def _builder(
    subject: x509.Name, issuer: Ca, key: Key, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    serial, public = x509.random_serial_number(), key.public_key()
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    # Both identifiers, as Consul writes them: Python 3.13 believes no chain without.
    return (
        x509.CertificateBuilder(issuer.name, subject, public, serial, start, end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        .add_extension(signer, False)
    )


def plain_context(role: str, roots: Iterable[Ca], made: Made | None, **options: Any) -> Any:
    """
    An ordinary context of the standard library: the outsider that our contexts meet.

    Args:
        role: ``client`` or ``server``.
        roots: trusted; names are not checked.
        made: shown; nothing when ``None``.
        options: attributes to set.
    """
    protocol = ssl.PROTOCOL_TLS_CLIENT if role == "client" else ssl.PROTOCOL_TLS_SERVER
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    for root in roots:
        context.load_verify_locations(cadata=root.pem)
    context.verify_mode = ssl.CERT_REQUIRED
    if made is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "leaf.pem")
            path.write_text(made.chain_pem + made.key_pem)
            context.load_cert_chain(path)
    for name, value in options.items():
        setattr(context, name, value)
    return context


def resigned(ca: Ca, made: Made, old: bytes, new: bytes) -> Made:
    """
    Replace *old* bytes of *made* by as many *new* ones and sign it again: what no library makes.
    """
    tbs = made.certificate.tbs_certificate_bytes
    assert len(old) == len(new) and tbs.count(old) == 1
    assert isinstance(ca.key, ec.EllipticCurvePrivateKey)
    tbs = tbs.replace(old, new)
    signature = ca.key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    der = _der(0x30, tbs + algorithm + _der(0x03, b"\0" + signature))
    return Made(x509.load_der_x509_certificate(der), made.key, made.chain)


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 128:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content
