"""Roots, leaves, authorize and the CA's configuration."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from .target import PATIENCE, Target, done_within, index_of

LEAF = "/v1/agent/connect/ca/leaf"


def trust_domain(agent: Target) -> str:
    """The agent's trust domain."""
    return str(agent.get("/v1/agent/connect/ca/roots").json()["TrustDomain"])


def load(pem: str) -> x509.Certificate:
    """The first certificate in *pem*."""
    return x509.load_pem_x509_certificate(pem.encode())


def test_exactly_one_root_is_active(agent: Target) -> None:
    """The active root is the one named, and its ID is the SHA-1 of its certificate."""
    body = agent.get("/v1/agent/connect/ca/roots").json()
    (active,) = [root for root in body["Roots"] if root["Active"]]
    assert active["ID"] == body["ActiveRootID"]
    assert body["TrustDomain"] == active["ExternalTrustDomain"] + ".consul"
    assert load(active["RootCert"]).serial_number == active["SerialNumber"]


def test_root_certificate_names_the_trust_domain(agent: Target) -> None:
    """A P-256 CA whose one URI name is the trust domain, with a 32-byte key identifier."""
    body = agent.get("/v1/connect/ca/roots").json()
    (active,) = [root for root in body["Roots"] if root["Active"]]
    root = load(active["RootCert"])
    names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://{body['TrustDomain']}"
    ]
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, True)
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and usage.value.crl_sign
    identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    authority = root.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert len(identifier) == 32 and authority.key_identifier == identifier
    assert active["SigningKeyID"] == identifier.hex(":")
    root.verify_directly_issued_by(root)


def test_pem_form_of_the_roots_has_no_index(agent: Target) -> None:
    """``?pem=true`` is a chain of its own media type."""
    answer = agent.get("/v1/connect/ca/roots?pem=true")
    assert answer.headers["Content-Type"] == "application/pem-certificate-chain"
    assert "X-Consul-Index" not in answer.headers
    assert answer.text.startswith("-----BEGIN CERTIFICATE-----")


def test_pem_zero_is_json(agent: Target) -> None:
    """``?pem=0``, which py-consul sends, is the JSON form."""
    assert agent.get("/v1/connect/ca/roots?pem=0").json()["Roots"]


def test_agent_cache_says_hit_the_second_time(agent: Target) -> None:
    """Roots come from the agent's cache, and are fresh while it is connected."""
    agent.get("/v1/agent/connect/ca/roots")
    answer = agent.get("/v1/agent/connect/ca/roots")
    assert (answer.headers["X-Cache"], answer.headers["Age"]) == ("HIT", "0")


def test_leaf_carries_the_service_id(agent: Target) -> None:
    """One critical-enough URI name, no other name, both extended usages, no CA."""
    name = agent.name("Web")  # case is preserved
    body = agent.get(f"{LEAF}/{name}").json()
    leaf = load(body["CertPEM"])
    uri = f"spiffe://{trust_domain(agent)}/ns/default/dc/dc1/svc/{name}"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(uri)]
    assert (body["ServiceURI"], body["Service"]) == (uri, name)
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature and usage.value.key_agreement
    assert usage.value.key_encipherment and usage.value.data_encipherment
    assert not usage.value.key_cert_sign


def test_leaf_is_signed_by_the_active_root_and_fits_its_key(agent: Target) -> None:
    """The chain verifies, the key is SEC1 P-256 and belongs to the certificate."""
    body = agent.get(f"{LEAF}/{agent.name()}").json()
    roots = agent.get("/v1/agent/connect/ca/roots").json()
    (active,) = [root for root in roots["Roots"] if root["Active"]]
    leaf = load(body["CertPEM"])
    leaf.verify_directly_issued_by(load(active["RootCert"]))
    assert body["PrivateKeyPEM"].startswith("-----BEGIN EC PRIVATE KEY-----")
    key = serialization.load_pem_private_key(body["PrivateKeyPEM"].encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == leaf.public_key()


def test_leaf_tells_its_serial_number_and_times(agent: Target) -> None:
    """Serial as colon-hex of its bytes, back-dated by a minute, valid for 72 hours."""
    body = agent.get(f"{LEAF}/{agent.name()}").json()
    leaf = load(body["CertPEM"])
    size = (leaf.serial_number.bit_length() + 7) // 8
    assert body["SerialNumber"] == leaf.serial_number.to_bytes(size, "big").hex(":")
    assert datetime.fromisoformat(body["ValidAfter"]) == leaf.not_valid_before_utc
    assert datetime.fromisoformat(body["ValidBefore"]) == leaf.not_valid_after_utc
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=72)
    age = datetime.now(UTC) - leaf.not_valid_before_utc
    assert timedelta(seconds=59) <= age < timedelta(seconds=75)


def test_every_caller_gets_the_same_pair(agent: Target) -> None:
    """The agent caches by service: same certificate, same key, same index; then it is a HIT."""
    name = agent.name()
    first, second = agent.get(f"{LEAF}/{name}"), agent.get(f"{LEAF}/{name}")
    assert first.json() == second.json()
    assert (first.headers["X-Cache"], second.headers["X-Cache"]) == ("MISS", "HIT")
    assert index_of(first) == first.json()["ModifyIndex"] == index_of(second)
    assert "Age" not in first.headers and int(second.headers["Age"]) >= 0


def test_services_do_not_share_leaves(agent: Target) -> None:
    """Another service has another key and another serial number."""
    one, two = (agent.get(f"{LEAF}/{agent.name()}").json() for _ in range(2))
    assert one["PrivateKeyPEM"] != two["PrivateKeyPEM"]
    assert one["SerialNumber"] != two["SerialNumber"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a%2Fb", "SPIFFE ID is not in the expected format: spiffe://"),
        ("web?dc=elsewhere", "No path to datacenter"),
    ],
)
def test_leaf_that_cannot_be_is_a_500(agent: Target, path: str, text: str) -> None:
    """A slash in the name, or another datacenter, is refused."""
    answer = agent.get(f"{LEAF}/{path}")
    assert answer.status_code == 500
    assert answer.text.startswith(text)


def test_space_in_a_name_is_escaped_in_the_uri(agent: Target) -> None:
    """A name with a space works, and becomes %20."""
    assert agent.get(f"{LEAF}/a%20b").json()["ServiceURI"].endswith("/svc/a%20b")


def test_leaf_query_waits_and_answers_the_same(agent: Target) -> None:
    """Nothing new: the wait ends without jitter, with the same body and index."""
    name = agent.name()
    first = agent.get(f"{LEAF}/{name}")
    again = agent.get(f"{LEAF}/{name}?index={index_of(first)}&wait=200ms")
    assert again.json() == first.json()
    assert index_of(again) == index_of(first)
    assert again.elapsed.total_seconds() >= 0.2
    assert again.headers["X-Cache"] == "MISS"


def test_leaf_query_with_an_old_index_answers_at_once(agent: Target) -> None:
    """A stored leaf newer than the index asked for is a HIT, without waiting."""
    name = agent.name()
    first = agent.get(f"{LEAF}/{name}")
    again = agent.get(f"{LEAF}/{name}?index={index_of(first) - 1}&wait=10s")
    assert (again.headers["X-Cache"], again.json()) == ("HIT", first.json())


# Authorize


def authorize(agent: Target, target: str, source: str) -> dict[str, object]:
    """Ask whether *source* may connect to *target*."""
    uri = f"spiffe://{trust_domain(agent)}/ns/default/dc/dc1/svc/{source}"
    body = {"Target": target, "ClientCertURI": uri, "ClientCertSerial": "0e"}
    answer = agent.post("/v1/agent/connect/authorize", body)
    assert answer.status_code == 200, answer.text
    result: dict[str, object] = answer.json()
    return result


def test_without_intentions_the_default_decides(agent: Target) -> None:
    """No intention, ACLs off: allowed, and the reason says why."""
    answer = authorize(agent, agent.name(), agent.name())
    assert answer == {
        "Authorized": True,
        "Reason": "ACLs disabled, access is allowed by default",
    }


@pytest.mark.parametrize(("action", "allowed"), [("allow", True), ("deny", False)])
def test_first_matching_intention_decides(agent: Target, action: str, allowed: bool) -> None:
    """The exact intention decides before the wildcard, whatever the wildcard says."""
    source, target = agent.name(), agent.name()
    other = "deny" if action == "allow" else "allow"
    made = [agent.intend(source, target, action), agent.intend("*", target, other)]
    assert authorize(agent, target, source)["Authorized"] is allowed
    assert authorize(agent, target, agent.name())["Authorized"] is not allowed
    for identity in made:
        agent.forget(identity)


def test_trust_domain_and_datacenter_do_not_matter_to_authorize(agent: Target) -> None:
    """authorize looks at namespace and name only."""
    source, target = agent.name(), agent.name()
    made = agent.deny(source, target)
    uri = f"spiffe://other.consul/ns/default/dc/elsewhere/svc/{source}"
    answer = agent.post("/v1/agent/connect/authorize", {"Target": target, "ClientCertURI": uri})
    assert answer.json()["Authorized"] is False
    agent.forget(made)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"ClientCertURI": "spiffe://x.consul"}, "Target service must be specified"),
        ({"Target": "web"}, "ClientCertURI not a valid Connect identifier"),
        ({"Target": "web", "ClientCertURI": "http://x.consul/ns/default/dc/dc1/svc/a"},
         "ClientCertURI not a valid Connect identifier"),
        ({"Target": "web", "ClientCertURI": "spiffe://x.consul/ns/default/dc/dc1/svc/a/"},
         "ClientCertURI not a valid Connect identifier"),
        ({"Target": "web", "ClientCertURI": "spiffe://x.consul"},
         "ClientCertURI not a valid Service identifier"),
        ({"Target": "web", "ClientCertURI": "spiffe://x.consul/agent/client/dc/dc1/id/n"},
         "ClientCertURI not a valid Service identifier"),
    ],
    ids=["no-target", "no-uri", "http", "trailing-slash", "signing", "agent"],
)  # fmt: skip
def test_bad_authorize_requests_are_named(agent: Target, body: dict[str, str], text: str) -> None:
    """400 with Consul's text."""
    answer = agent.post("/v1/agent/connect/authorize", body)
    assert (answer.status_code, answer.text) == (400, f"Bad request: {text}")


# CA configuration


def test_ca_configuration_is_readable(agent: Target) -> None:
    """Provider, config and indexes; State is null."""
    body = agent.get("/v1/connect/ca/configuration").json()
    assert body["Provider"] == "consul" and body["State"] is None
    assert body["Config"]["LeafCertTTL"] == "72h"


def test_unknown_ca_provider_is_refused(agent: Target) -> None:
    """500, naming the provider."""
    answer = agent.put("/v1/connect/ca/configuration", {"Provider": "nope"})
    assert answer.status_code == 500
    assert 'unknown CA provider "nope"' in answer.text


def test_dev_agent_wakes_leaf_watchers_on_renewal(dev: Target) -> None:
    """The blocked query answers with the new leaf: new key, higher index."""
    # The session's agent has no handle here: rotation does it; see test_rotation for both agents.
    name = dev.name()
    first = dev.get(f"{LEAF}/{name}")
    with dev.blocked(f"{LEAF}/{name}") as woken:
        key = {"PrivateKeyType": "ec", "PrivateKeyBits": 384}
        assert dev.put("/v1/connect/ca/configuration", {"Config": key}).status_code == 200
        assert done_within(woken, PATIENCE)
        dev.put("/v1/connect/ca/configuration", {"Config": {"LeafCertTTL": "72h"}})
    answer = woken.result(0)
    assert index_of(answer) > index_of(first)
    assert answer.json()["PrivateKeyPEM"] != first.json()["PrivateKeyPEM"]
