"""A new root, on both agents: who trusts what afterwards.

A real agent gives a cached leaf's watchers the new one within 30 s; that part is the demo's. Here
a leaf that nobody has asked for yet is issued at once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from mesh_middleware.dev import DevAgent, ca

from ..support.consul import RealConsul
from .target import PATIENCE, Target, index_of

ROOTS = "/v1/agent/connect/ca/roots"
LEAF = "/v1/agent/connect/ca/leaf"


class Rotation:
    """What was seen before, during and after a rotation by PUT of a new pair."""

    def __init__(self, target: Target) -> None:
        self.before: dict[str, Any] = target.get(ROOTS).json()
        self.old_leaf: dict[str, Any] = target.get(f"{LEAF}/early").json()
        cluster = self.before["TrustDomain"].removesuffix(".consul")
        certificate, key = ca.make_root(cluster, 4711, datetime.now(UTC))
        self.new_root = ca.to_pem(certificate)
        config = {"PrivateKey": ca.key_to_pem(key), "RootCert": self.new_root}
        self.woken: Future[httpx.Response]
        with target.blocked(ROOTS) as self.woken:
            self.answer = target.put(
                "/v1/connect/ca/configuration", {"Provider": "consul", "Config": config}
            )
            self.woken.result(PATIENCE)
        self.after: dict[str, Any] = target.get(ROOTS).json()
        self.new_leaf: dict[str, Any] = target.get(f"{LEAF}/late").json()
        self.pem = target.get("/v1/connect/ca/roots?pem=true").text
        self.config: dict[str, Any] = target.get("/v1/connect/ca/configuration").json()


@pytest.fixture(scope="module", params=["dev", "real"])
def rotation(request: pytest.FixtureRequest) -> Iterator[Rotation]:
    """A rotation of an agent that nobody else uses."""
    with DevAgent() if request.param == "dev" else RealConsul() as agent:
        target = Target(request.param, agent.url, "")
        yield Rotation(target)
        target.close()


def roots_by_activity(rotation: Rotation) -> tuple[dict[str, Any], dict[str, Any]]:
    """The active root and the other one."""
    (active,) = [root for root in rotation.after["Roots"] if root["Active"]]
    (old,) = [root for root in rotation.after["Roots"] if not root["Active"]]
    return active, old


def test_write_answers_empty_and_roots_wake_at_once(rotation: Rotation) -> None:
    """The configuration is accepted, and whoever watches the roots is told."""
    assert (rotation.answer.status_code, rotation.answer.content) == (200, b"")
    woken = rotation.woken.result(0)
    assert index_of(woken) > rotation.before["Roots"][0]["ModifyIndex"]


def test_new_root_is_active_and_the_old_one_stays(rotation: Rotation) -> None:
    """Two roots: the given one signs, the old one is still to be trusted."""
    active, old = roots_by_activity(rotation)
    assert active["RootCert"].strip() == rotation.new_root.strip()
    assert rotation.after["ActiveRootID"] == active["ID"] != rotation.before["ActiveRootID"]
    assert old["ID"] == rotation.before["ActiveRootID"]
    assert old["IntermediateCerts"] is None
    assert rotation.after["TrustDomain"] == rotation.before["TrustDomain"]


def test_old_root_cross_signs_the_new_one(rotation: Rotation) -> None:
    """One intermediate: subject and key of the new root, issued by the old one for a week."""
    active, old = roots_by_activity(rotation)
    (pem,) = active["IntermediateCerts"]
    bridge, new = (x509.load_pem_x509_certificate(p.encode()) for p in (pem, active["RootCert"]))
    bridge.verify_directly_issued_by(x509.load_pem_x509_certificate(old["RootCert"].encode()))
    assert bridge.subject == new.subject and bridge.public_key() == new.public_key()
    assert (bridge.not_valid_after_utc - bridge.not_valid_before_utc).days == 7


def test_new_leaf_brings_the_bridge(rotation: Rotation) -> None:
    """The chain handed out is leaf, then cross-signed root."""
    chain = x509.load_pem_x509_certificates(rotation.new_leaf["CertPEM"].encode())
    active, _ = roots_by_activity(rotation)
    bridge = x509.load_pem_x509_certificate(active["IntermediateCerts"][0].encode())
    assert len(chain) == 2 and chain[1] == bridge


@pytest.mark.parametrize("leaf", ["old", "new"])
@pytest.mark.parametrize("trust", ["before", "after"])
def test_every_leaf_verifies_under_every_trust(
    rotation: Rotation, tmp_path: Path, leaf: str, trust: str
) -> None:
    """OpenSSL, strict: peers that know the old root only, or both, accept old and new leaves."""
    body = rotation.old_leaf if leaf == "old" else rotation.new_leaf
    known = rotation.before if trust == "before" else rotation.after
    verify_with_openssl(tmp_path, body["CertPEM"], [root["RootCert"] for root in known["Roots"]])


def verify_with_openssl(directory: Path, chain: str, roots: list[str]) -> None:
    """Let ``openssl verify -x509_strict`` judge *chain*."""
    first, _, rest = chain.partition("-----END CERTIFICATE-----\n")
    (directory / "leaf").write_text(first + "-----END CERTIFICATE-----\n")
    (directory / "roots").write_text("".join(roots))
    command = ["openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore",
               "-CAfile", directory / "roots"]  # fmt: skip
    if rest.strip():
        (directory / "rest").write_text(rest)
        command += ["-untrusted", directory / "rest"]
    done = subprocess.run(
        [*command, directory / "leaf"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr


def test_pem_form_mixes_roots_and_bridges(rotation: Rotation) -> None:
    """Three certificates: why nobody should take that form for trust anchors."""
    assert len(x509.load_pem_x509_certificates(rotation.pem.encode())) == 3


def test_configuration_reads_back_as_written(rotation: Rotation) -> None:
    """What was put, key included, and nothing added."""
    assert set(rotation.config["Config"]) == {"PrivateKey", "RootCert"}
    assert rotation.config["Config"]["RootCert"].strip() == rotation.new_root.strip()
