"""Certificates: who the holder is, what it may be used for, and whether a root signs it."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from mesh_middleware.certificates import (
    KeyPair,
    Leaf,
    Peer,
    Role,
    check_chain,
    check_key,
    check_usage,
    check_validity,
    fingerprint,
    load_certificates,
    read_leaf,
    read_peer,
    read_spiffe_id,
    utc_now,
)
from mesh_middleware.exceptions import CertificateError
from mesh_middleware.identity import GatewayId, ServiceId, SigningId

from .support.certs import (
    HOUR,
    LEAF_USAGE,
    NOW,
    TRUST_DOMAIN,
    Ca,
    Made,
    key_pem,
    make_key,
    service_uri,
)

TAX = service_uri("tax")
MICROSECOND = timedelta(microseconds=1)
OTHER_NAME = x509.OtherName(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no names": ({"uris": []}, "0 URI names"),
    "a DNS name only": ({"uris": [], "dns": ["tax.service.consul"]}, "0 URI names"),
    "two URI names": ({"uris": [TAX, service_uri("order")]}, "2 URI names"),
    "the same URI name twice": ({"uris": [TAX, TAX]}, "2 URI names"),
    "a SPIFFE ID and a web address": ({"uris": [TAX, "https://tax"]}, "2 URI names"),
    "a web address": ({"uris": ["https://tax.example"]}, "a SPIFFE ID is"),
    "a form that is not Consul's": (
        {"uris": [f"spiffe://{TRUST_DOMAIN}/k8s/sa/tax"]},
        "none of Consul's forms",
    ),
    "not the canonical spelling": ({"uris": [f"{TAX}%2f"]}, "no path segment"),
    "an upper-case trust domain": ({"uris": [TAX.replace("9361e7cf", "9361E7CF")]}, "trust domain"),
    "CA:TRUE": ({"ca": True}, "CA:TRUE"),
    "keyCertSign": ({"usages": (*LEAF_USAGE, "key_cert_sign")}, "of a CA"),
    "cRLSign": ({"usages": (*LEAF_USAGE, "crl_sign")}, "of a CA"),
    "no digitalSignature": ({"usages": ("key_encipherment",)}, "without digitalSignature"),
    "no key usage at all": ({"usages": None}, "no key usage"),
    "extended usage of e-mail": ({"extended": ("email",)}, "extended key usage"),
    "extended usage any": ({"extended": ("any",)}, "extended key usage"),
    "expired a second ago": ({"not_after": NOW - timedelta(seconds=1)}, "expired"),
    "valid from the next second": ({"not_before": NOW + timedelta(seconds=1)}, "not valid before"),
    "a URI name beside one no library reads": (
        {"extensions": [(UNKNOWN, False)], "uris": [TAX, TAX]},
        "2 URI names",
    ),
}

RIGHT: dict[str, dict[str, Any]] = {
    "as Consul issues it": {},
    "RSA key": {"key": "rsa"},
    "no basic constraints": {"ca": None},
    "no extended usages": {"extended": None},
    "DNS names beside the URI": {"dns": ["localhost", "tax"]},
    "another kind of name beside the URI": {"others": [OTHER_NAME]},
    "an unknown extension": {"extensions": [(UNKNOWN, False)]},
    "digitalSignature alone": {"usages": ("digital_signature",)},
    "its last second": {"not_after": NOW},
    "its first second": {"not_before": NOW},
}


def peer(made: Made, role: Role = "client", now: datetime = NOW) -> Peer:
    """Read a certificate as the gate does."""
    return read_peer(made.der, role, now)


@pytest.mark.parametrize(("options", "rule"), WRONG.values(), ids=list(WRONG))
@pytest.mark.parametrize("role", ["client", "server"])
def test_certificate_that_breaks_a_rule_names_nobody(
    ca: Ca, options: dict[str, Any], rule: str, role: Role
) -> None:
    """Each rule of an X.509-SVID leaf is demanded by itself, and the message names it."""
    with pytest.raises(CertificateError, match=rule):
        peer(ca.leaf(**options), role)


@pytest.mark.parametrize("options", RIGHT.values(), ids=list(RIGHT))
@pytest.mark.parametrize("role", ["client", "server"])
def test_sound_certificate_names_its_holder(ca: Ca, options: dict[str, Any], role: Role) -> None:
    """What the rules do not forbid is read: ID, serial number and end."""
    made = ca.leaf(**options)
    found = peer(made, role)
    assert found.id == ServiceId(TRUST_DOMAIN, "default", "dc1", "tax")
    assert found.serial_number == f"{made.certificate.serial_number:x}"
    assert found.not_after == made.certificate.not_valid_after_utc
    assert found.expires == found.not_after.timestamp()


@pytest.mark.parametrize(("role", "other"), [("client", "server"), ("server", "client")])
def test_extended_usage_has_to_fit_the_role(ca: Ca, role: Role, other: Role) -> None:
    """A certificate for servers only calls nobody, one for clients only serves nobody."""
    made = ca.leaf(extended=(role,))
    assert peer(made, role).id.uri == TAX
    with pytest.raises(CertificateError, match=f"TLS {other} authentication"):
        peer(made, other)


def test_gateways_and_other_forms_are_read_as_what_they_are(ca: Ca) -> None:
    """Whether a gateway may call is for the intentions to say; it is no service."""
    made = ca.leaf(uris=[f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1"])
    assert peer(made).id == GatewayId(TRUST_DOMAIN, "dc1")
    assert read_spiffe_id(ca.certificate) == SigningId(TRUST_DOMAIN)


def test_ca_certificate_is_no_peer(ca: Ca) -> None:
    """A CA's own certificate has one sound SPIFFE ID, and identifies no workload."""
    with pytest.raises(CertificateError, match="CA:TRUE"):
        read_peer(Made(ca.certificate, ca.key).der, "client", NOW)


@pytest.mark.parametrize("der", [b"", b"\x30", b"no certificate", b"\x30\x82\xff\xff"])
def test_bytes_that_are_no_certificate_are_refused(der: bytes) -> None:
    """Garbage is a rule broken, not a crash."""
    with pytest.raises(CertificateError, match="unreadable certificate"):
        read_peer(der, "client", NOW)


def _spliced(made: Made, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new) and made.der.count(old) == 1
    return made.der.replace(old, new)


def test_certificate_with_an_extension_twice_is_refused(ca: Ca) -> None:
    """Which of two equal extensions counts is a matter of taste: then neither does."""
    twin = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.6"), b"\x05\x00")
    made = ca.leaf(extensions=[(UNKNOWN, False), (twin, False)])
    der = _spliced(made, bytes.fromhex("06042a030406"), bytes.fromhex("06042a030405"))
    with pytest.raises(CertificateError, match="unreadable"):
        read_peer(der, "client", NOW)


def test_certificate_with_a_name_of_unknown_type_is_refused(ca: Ca) -> None:
    """A name that the library cannot read might be anything."""
    made = ca.leaf(others=[x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4.7"))])
    # [8] registeredID becomes [3] x400Address.
    der = _spliced(made, bytes.fromhex("88042a030407"), bytes.fromhex("83042a030407"))
    with pytest.raises(CertificateError, match="unreadable"):
        read_peer(der, "client", NOW)


def test_certificate_with_an_unreadable_extension_is_refused(ca: Ca) -> None:
    """A key usage that is no bit string is no key usage."""
    made = ca.leaf(usages=("digital_signature",))
    der = _spliced(made, bytes.fromhex("0404 0302 0780"), bytes.fromhex("0404 0402 0780"))
    with pytest.raises(CertificateError, match="unreadable"):
        read_peer(der, "client", NOW)


def test_certificate_of_an_unknown_version_is_refused(ca: Ca) -> None:
    """X.509 has three versions."""
    der = _spliced(ca.leaf(), bytes.fromhex("a003020102"), bytes.fromhex("a003020108"))
    with pytest.raises(CertificateError, match="unreadable"):
        read_peer(der, "client", NOW)


# -- our own leaf ----------------------------------------------------------------------------------


def test_leaf_is_read_from_the_first_certificate_of_the_chain(ca: Ca) -> None:
    """What follows the leaf leads to roots, and says nothing about who we are."""
    made = ca.leaf("tax")
    leaf = read_leaf(made.pem + ca.leaf("order").pem + ca.pem)
    assert leaf.id == ServiceId(TRUST_DOMAIN, "default", "dc1", "tax")
    assert leaf.not_before == NOW - HOUR
    assert leaf.not_after == NOW + HOUR
    assert leaf.not_after.tzinfo is UTC
    assert leaf.chain_pem.count("BEGIN CERTIFICATE") == 3


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"uris": [f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1"]}, "our leaf: .* a gateway"),
        ({"extended": ("client",)}, "TLS server"),
        ({"extended": ("server",)}, "TLS client"),
        ({"ca": True}, "CA:TRUE"),
        ({"uris": []}, "0 URI names"),
    ],
)
def test_our_leaf_has_to_be_a_services_for_both_roles(
    ca: Ca, options: dict[str, Any], rule: str
) -> None:
    """A leaf that could not serve and call is refused when it arrives, not when it is used."""
    with pytest.raises(CertificateError, match=rule):
        read_leaf(ca.leaf(**options).pem)


@pytest.mark.parametrize("pem", ["", "no PEM", "-----BEGIN CERTIFICATE-----\n", "é"])
def test_text_without_certificates_is_refused(pem: str) -> None:
    """An empty or broken bundle is no bundle of none."""
    with pytest.raises(CertificateError, match="PEM certificates expected"):
        load_certificates(pem)


def test_truncated_second_certificate_is_refused(ca: Ca) -> None:
    """A chain that was cut off on the way is not taken for a shorter one."""
    with pytest.raises(CertificateError):
        load_certificates(ca.pem + ca.pem[: len(ca.pem) // 2] + "-----END CERTIFICATE-----\n")


# -- key -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ec", "rsa"])
@pytest.mark.parametrize("form", ["TraditionalOpenSSL", "PKCS8"])
def test_key_in_either_form_belongs_to_its_certificate(ca: Ca, kind: str, form: str) -> None:
    """SEC1 and PKCS#1, as Consul writes them, and PKCS#8, as others do."""
    made = ca.leaf(key=kind)
    text = made.key.private_bytes(
        serialization.Encoding.PEM,
        getattr(serialization.PrivateFormat, form),
        serialization.NoEncryption(),
    )
    check_key(KeyPair(read_leaf(made.pem), text.decode()))


def _encrypted(made: Made) -> str:
    return made.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    ).decode()


def _edwards() -> str:
    return (
        ed25519.Ed25519PrivateKey.generate()
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


def _unknown_curve(made: Made) -> str:
    p256, unknown = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030177")
    der = base64.b64decode("".join(made.key_pem.splitlines()[1:-1])).replace(p256, unknown)
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN EC PRIVATE KEY-----\n{body}-----END EC PRIVATE KEY-----\n"


def test_key_of_another_certificate_is_refused(ca: Ca) -> None:
    """A pair that does not belong together could serve nobody."""
    made = ca.leaf()
    for other in (key_pem(make_key()), key_pem(make_key("rsa")), _edwards()):
        with pytest.raises(CertificateError, match="not that of leaf"):
            check_key(KeyPair(read_leaf(made.pem), other))


def test_leaf_with_a_public_key_of_unknown_kind_is_refused(ca: Ca) -> None:
    """A certificate whose key the library does not know is a rule broken, not a crash."""
    made = ca.leaf()
    der = _spliced(
        made, bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030177")
    )
    pem = ssl.DER_cert_to_PEM_cert(der)
    with pytest.raises(CertificateError, match="unreadable public key"):
        check_key(KeyPair(read_leaf(pem), made.key_pem))


def test_key_that_cannot_be_read_is_refused_without_showing_it(ca: Ca) -> None:
    """Broken, encrypted, of an unknown curve: one error, which quotes no part of the key."""
    made = ca.leaf()
    broken = made.key_pem.replace("\n", "\n!", 2)
    for text in ("", "CANARY", broken, _encrypted(made), _unknown_curve(made), made.pem, "é"):
        with pytest.raises(CertificateError, match="private key cannot be read") as caught:
            check_key(KeyPair(read_leaf(made.pem), text))
        assert "CANARY" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_private_key_is_in_no_repr(ca: Ca) -> None:
    """Neither the key nor the chain fills a log line."""
    made = ca.leaf()
    pair = made.pair
    secret = "".join(made.key_pem.splitlines()[1:-1])
    for text in (repr(pair), str(pair), f"{pair}", repr([pair]), repr(pair.leaf)):
        assert "PRIVATE" not in text
        assert secret[:16] not in text
        assert "BEGIN" not in text
        assert "svc" in text or "tax" in text


# -- chain -----------------------------------------------------------------------------------------


def test_chain_to_any_root_in_the_list_holds(ca: Ca) -> None:
    """Active or not, every root in the list is trusted."""
    newer = Ca()
    check_chain(ca.leaf().chain_pem, newer.roots(ca), NOW)
    check_chain(newer.leaf().chain_pem, newer.roots(ca), NOW)


@pytest.mark.parametrize("kinds", [("ec", "rsa"), ("rsa", "ec")], ids="-".join)
def test_chain_across_kinds_of_keys_holds(kinds: tuple[str, str]) -> None:
    """An RSA root signs EC leaves, and the other way round."""
    root, leaf = kinds
    authority = Ca(key=root)
    check_chain(authority.leaf(key=leaf).chain_pem, authority.roots(), NOW)


def test_chain_through_intermediates_in_any_order_holds() -> None:
    """As with Vault or in a secondary datacenter: two CAs between leaf and root."""
    root = Ca()
    middle = Ca(issuer=root)
    low = Ca(issuer=middle)
    leaf = low.leaf(chain="")
    check_chain(leaf.pem + low.pem + middle.pem, root.roots(), NOW)
    check_chain(leaf.pem + middle.pem + low.pem, root.roots(), NOW)
    check_chain(leaf.pem + middle.pem + Ca().pem + low.pem, root.roots(), NOW)


def test_chain_through_a_cross_signed_root_holds_for_old_roots() -> None:
    """Who knows only the old root verifies the new root's leaves by the cross-signed one."""
    old, new = Ca(name="old"), Ca(name="new")
    leaf = new.leaf(chain=new.cross_signed_by(old))
    check_chain(leaf.chain_pem, old.roots(), NOW)
    check_chain(leaf.chain_pem, new.roots(), NOW)
    with pytest.raises(CertificateError, match="no root of"):
        check_chain(leaf.pem, old.roots(), NOW)


def _chains(case: str) -> tuple[str, Iterable[Ca]]:
    root = Ca()
    if case == "foreign root":
        return Ca().leaf().chain_pem, [root]
    if case == "foreign root with the same name":
        twin = Ca()
        twin.name = root.name
        return twin.leaf().chain_pem, [root]
    if case == "intermediate is missing":
        return Ca(issuer=root).leaf(chain="").chain_pem, [root]
    if case == "expired root":
        old = Ca(not_before=NOW - 2 * HOUR, not_after=NOW - HOUR)
        return old.leaf().chain_pem, [old]
    if case == "expired intermediate":
        middle = Ca(issuer=root, not_before=NOW - 2 * HOUR, not_after=NOW - HOUR)
        return middle.leaf().chain_pem, [root]
    if case == "intermediate not yet valid":
        middle = Ca(issuer=root, not_before=NOW + HOUR)
        return middle.leaf().chain_pem, [root]
    if case == "intermediate that is no CA":
        return Ca(issuer=root, ca=False).leaf().chain_pem, [root]
    if case == "root that is no CA":
        return Ca(ca=False).leaf().chain_pem, []
    if case == "its own root brought along":
        other = Ca()
        return other.leaf(chain=other.pem).chain_pem, [root]
    assert case == "expired leaf"
    return root.leaf(not_after=NOW - timedelta(seconds=1)).chain_pem, [root]


@pytest.mark.parametrize(
    "case",
    [
        "foreign root",
        "foreign root with the same name",
        "intermediate is missing",
        "expired root",
        "expired intermediate",
        "intermediate not yet valid",
        "intermediate that is no CA",
        "root that is no CA",
        "its own root brought along",
        "expired leaf",
    ],
)
def test_chain_that_leads_to_no_valid_root_is_refused(case: str) -> None:
    """A leaf that nobody could verify does not replace a useful one."""
    chain, trusted = _chains(case)
    first, *others = [*trusted] or [Ca()]
    with pytest.raises(CertificateError, match="no root of|expired"):
        check_chain(chain, first.roots(*others), NOW)


def test_intermediate_is_no_anchor() -> None:
    """Only what stands in the roots is trusted: a chain may end there and nowhere else."""
    root = Ca()
    middle = Ca(issuer=root)
    with pytest.raises(CertificateError, match="no root of"):
        check_chain(middle.leaf(chain=middle.pem + root.pem).chain_pem, Ca().roots(), NOW)


def test_loop_of_cross_signed_roots_ends() -> None:
    """Two roots that sign each other do not keep the walk going for ever."""
    one, two = Ca(), Ca()
    loop = one.cross_signed_by(two) + two.cross_signed_by(one)
    with pytest.raises(CertificateError, match="no root of"):
        check_chain(one.leaf(chain=loop).chain_pem, Ca().roots(), NOW)


# -- the rest --------------------------------------------------------------------------------------


def test_validity_includes_both_ends(ca: Ca) -> None:
    """RFC 5280: the period runs from notBefore through notAfter, inclusive."""
    certificate = ca.leaf().certificate
    check_validity(certificate, NOW - HOUR)
    check_validity(certificate, NOW + HOUR)
    with pytest.raises(CertificateError, match="expired"):
        check_validity(certificate, NOW + HOUR + MICROSECOND)
    with pytest.raises(CertificateError, match="not valid before"):
        check_validity(certificate, NOW - HOUR - MICROSECOND)


def test_usage_is_judged_for_a_loaded_certificate(ca: Ca) -> None:
    """The rules on usages stand by themselves, for either role."""
    check_usage(ca.leaf().certificate, "client")
    with pytest.raises(CertificateError):
        check_usage(ca.certificate, "client")


def test_fingerprint_is_what_consul_calls_a_root(ca: Ca) -> None:
    """Consul names a root by the SHA-1 of its DER, in colons."""
    found = fingerprint(ca.pem)
    assert len(found) == 59
    assert bytes.fromhex(found.replace(":", ""))
    assert found != fingerprint(Ca().pem)


def test_present_moment_knows_its_zone() -> None:
    """The default clock gives aware UTC: naive moments cannot be compared with certificates."""
    assert utc_now().tzinfo is UTC


def test_values_are_immutable(ca: Ca) -> None:
    """A reader may keep a value for as long as it likes."""
    found = peer(ca.leaf())
    with pytest.raises(AttributeError):
        found.id = found.id  # type: ignore[misc]
    leaf: Leaf = ca.leaf().pair.leaf
    with pytest.raises(AttributeError):
        leaf.not_after = NOW  # type: ignore[misc]
