"""Roots, leaves, rotation, and the certificates made wrong on purpose."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh_middleware.dev import DevAgent, Refusal
from mesh_middleware.dev.ca import (
    CertificateAuthority,
    RootCa,
    key_to_pem,
    load_root,
    make_key,
    serial_text,
    to_pem,
)
from mesh_middleware.identity import ServiceId

CLUSTER = "11111111-2222-3333-4444-555555555555"
NOW = datetime.now(UTC)
TTL = timedelta(hours=1)
TAX = ServiceId(f"{CLUSTER}.consul", "default", "dc1", "tax")


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    """A CA that was rotated once; its first root is ``roots[0]``."""
    made = CertificateAuthority(CLUSTER, NOW)
    made.rotate(NOW)
    return made


def handshake(directory: Path, pair: tuple[str, str], roots: list[str]) -> None:
    """A TLS handshake in memory: a server that shows *pair* to a client that trusts *roots*."""
    path = directory / "pair.pem"
    path.write_text("".join(pair))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(cadata="".join(roots))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not ends


def issue(authority: CertificateAuthority) -> tuple[str, str]:
    """A leaf under the active root."""
    leaf = authority.issue(TAX, NOW, TTL)
    return leaf.chain_pem, leaf.key_pem


def test_new_leaf_verifies_for_peers_that_know_the_old_root_only(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """leaf, bridge, old root: whoever has not heard of the rotation yet still accepts."""
    handshake(tmp_path, issue(authority), [authority.roots[0].pem])


def test_new_leaf_verifies_for_peers_with_the_new_list(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """With both roots, and with the new one alone."""
    for roots in (authority.roots, authority.roots[1:]):
        handshake(tmp_path, issue(authority), [root.pem for root in roots])


def test_without_cross_signing_the_old_root_does_not_do(tmp_path: Path) -> None:
    """A rotation that does not cross-sign cuts off who only knows the old root."""
    made = CertificateAuthority(CLUSTER, NOW)
    made.rotate(NOW, cross=False)
    handshake(tmp_path, issue(made), [made.active.pem])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, issue(made), [made.roots[0].pem])


def test_two_rotations_bridge_the_last_step_only(tmp_path: Path) -> None:
    """The third root is signed by the second: the first alone verifies nothing of it."""
    made = CertificateAuthority(CLUSTER, NOW)
    made.rotate(NOW)
    made.rotate(NOW)
    handshake(tmp_path, issue(made), [made.roots[1].pem])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, issue(made), [made.roots[0].pem])


def test_rsa_root_signs_ec_leaves(tmp_path: Path) -> None:
    """The leaf's key is P-256 whatever the root's is."""
    made = CertificateAuthority(CLUSTER, NOW)
    made.rotate(NOW, key=make_key("rsa", 2048))
    chain, key = issue(made)
    leaf = x509.load_pem_x509_certificate(chain.encode())
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(made.active.certificate.public_key(), rsa.RSAPublicKey)
    handshake(tmp_path, (chain, key), [made.active.pem])


def test_no_serial_number_comes_twice(authority: CertificateAuthority) -> None:
    """Roots, bridges and leaves share one counter."""
    serials = [authority.issue(TAX, NOW, TTL).serial for _ in range(5)]
    assert len(set(serials)) == 5
    assert serial_text(0x0E12) == "0e:12" and serial_text(8) == "08"


def test_roots_are_pruned_by_age_never_the_active_one() -> None:
    """Only roots retired before the moment go."""
    made = CertificateAuthority(CLUSTER, NOW)
    made.rotate(NOW)
    made.rotate(NOW + timedelta(hours=5))
    assert made.prune(NOW + timedelta(hours=1)) is True
    assert [root.retired for root in made.roots] == [NOW + timedelta(hours=5), None]
    assert made.prune(NOW + timedelta(hours=1)) is False
    made.prune(NOW + timedelta(days=999))
    assert made.roots == [made.active]


def test_authority_survives_dump_and_load(authority: CertificateAuthority) -> None:
    """Roots, keys, bridges and the counter are the same after a restart."""
    again = CertificateAuthority.load(authority.dump())
    assert [root.id for root in again.roots] == [root.id for root in authority.roots]
    assert again.active.cross_signed == authority.active.cross_signed
    assert again.next_serial() == authority.serial + 1


def test_keys_stay_out_of_reprs(authority: CertificateAuthority) -> None:
    """Neither roots nor leaves show their key."""
    leaf = authority.issue(TAX, NOW, TTL)
    assert "PRIVATE" not in repr(leaf) and "PrivateKey" not in repr(authority.active)


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        ("nonsense", "nonsense"),
        ("own", "nonsense"),
        ("own", "other"),
        ("leaf", "leaf"),
    ],
)
def test_unusable_root_pair_is_refused(
    authority: CertificateAuthority, certificate: str, key: str
) -> None:
    """Unreadable, not belonging together, or no CA: 500, and nothing changes."""
    leaf = authority.issue(TAX, NOW, TTL)
    texts = {
        "nonsense": "nonsense", "own": authority.active.pem, "leaf": leaf.chain_pem,
    }  # fmt: skip
    keys = {"nonsense": "nonsense", "other": key_to_pem(make_key()), "leaf": leaf.key_pem}
    with pytest.raises(Refusal, match="invalid CA config") as caught:
        load_root(texts[certificate], keys[key])
    assert caught.value.status == 500


@pytest.mark.parametrize(("kind", "bits"), [("ec", 255), ("rsa", 1024), ("dsa", 2048)])
def test_key_kinds_are_those_of_consul(kind: str, bits: int) -> None:
    """Other kinds and sizes are refused by name."""
    with pytest.raises(Refusal, match=f"{kind} keys cannot have {bits} bits"):
        make_key(kind, bits)


# Certificates for tests


@pytest.fixture(scope="module")
def agent() -> DevAgent:
    """An agent that listens nowhere."""
    return DevAgent()


def extension(pem: str, kind: type[Any]) -> Any:
    """The value of an extension of the first certificate, or None."""
    try:
        found = x509.load_pem_x509_certificate(pem.encode()).extensions
        return found.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def uris(pem: str) -> list[str]:
    """URI names of the first certificate."""
    names = extension(pem, x509.SubjectAlternativeName)
    return names.get_values_for_type(x509.UniformResourceIdentifier) if names else []


def test_issued_certificate_is_sound_by_default(agent: DevAgent, tmp_path: Path) -> None:
    """It verifies, and names the service."""
    pair = agent.issue("invoice")
    handshake(tmp_path, pair, [agent.roots_pem])
    assert uris(pair[0]) == [f"spiffe://{agent.trust_domain}/ns/default/dc/dc1/svc/invoice"]


def test_uri_names_can_be_any(agent: DevAgent) -> None:
    """None, two, another trust domain, another form."""
    gateway = f"spiffe://{agent.trust_domain}/gateway/mesh/dc/dc1"
    assert uris(agent.issue("x", uris=[])[0]) == []
    assert uris(agent.issue("x", uris=[gateway, gateway + "2"])[0]) == [gateway, gateway + "2"]
    assert uris(agent.issue("x", trust_domain="evil.consul")[0]) == [
        "spiffe://evil.consul/ns/default/dc/dc1/svc/x"
    ]


def test_foreign_certificate_verifies_nowhere(agent: DevAgent, tmp_path: Path) -> None:
    """Same trust domain in its name, another CA behind it."""
    pair = agent.issue("invoice", foreign=True)
    assert uris(pair[0]) == uris(agent.issue("invoice")[0])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, pair, [agent.roots_pem])


@pytest.mark.parametrize(
    ("start", "life", "words"),
    [(timedelta(hours=-2), timedelta(hours=1), "expired"),
     (timedelta(hours=2), timedelta(hours=1), "not yet valid")],
    ids=["expired", "not-yet-valid"],
)  # fmt: skip
def test_times_can_be_wrong(
    agent: DevAgent, tmp_path: Path, start: timedelta, life: timedelta, words: str
) -> None:
    """Expired, and not yet valid."""
    pair = agent.issue("x", not_before=NOW + start, lifetime=life)
    with pytest.raises(ssl.SSLCertVerificationError, match=words):
        handshake(tmp_path, pair, [agent.roots_pem])


def test_usages_can_be_wrong(agent: DevAgent) -> None:
    """CA:TRUE, keyCertSign, one extended usage, none at all."""
    assert extension(agent.issue("x", ca=True)[0], x509.BasicConstraints).ca is True
    assert extension(agent.issue("x", cert_sign=True)[0], x509.KeyUsage).key_cert_sign is True
    one = extension(agent.issue("x", usages=["client"])[0], x509.ExtendedKeyUsage)
    assert list(one) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extension(agent.issue("x", usages=[])[0], x509.ExtendedKeyUsage) is None


def test_key_and_dns_names_can_be_other(agent: DevAgent, tmp_path: Path) -> None:
    """An RSA key, and names that no mesh certificate has."""
    chain, key = agent.issue("x", key="rsa", dns=["tax.example"])
    names = extension(chain, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["tax.example"]
    assert "RSA PRIVATE KEY" in key
    handshake(tmp_path, (chain, key), [agent.roots_pem])


def test_issued_after_a_rotation_brings_the_bridge(tmp_path: Path) -> None:
    """Test certificates come with the cross-signed root, as leaves do."""
    agent = DevAgent()
    old = agent.roots_pem
    agent.rotate_ca()
    handshake(tmp_path, agent.issue("x"), [old])


def test_root_reads_itself() -> None:
    """The ID is colon-hex SHA-1; the PEM is the certificate's."""
    made = CertificateAuthority(CLUSTER, NOW)
    root: RootCa = made.active
    assert len(root.id) == 59 and root.pem == to_pem(root.certificate)
