"""Keys and certificates that an agent, or whoever answers in its place, could send."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization

from mesh_middleware.certificates import read_leaf
from mesh_middleware.exceptions import CertificateError

from ..support.certs import Ca, make_key

LOAD = """
import sys
from dataclasses import replace
from mesh_middleware.certificates import KeyPair, Roots, check_key, read_leaf
from mesh_middleware.exceptions import CertificateError
from mesh_middleware.tls import Generation

chain, locked, key, root = sys.stdin.read().split("=====")
pair = KeyPair(replace(read_leaf(chain), chain_pem=chain + locked), key)
check_key(pair)
try:
    Generation(pair, Roots(pair.leaf.id.trust_domain, (root,), "00"), 1)
except CertificateError:
    print("refused")
else:
    print("loaded")
"""


def _locked() -> str:
    return (
        make_key()
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.BestAvailableEncryption(b"x"),
        )
        .decode()
    )


def test_a_key_among_the_certificates_is_refused(ca: Ca) -> None:
    """Whatever it is, encrypted or not, the leaf's own or another: agents send none there."""
    leaf = ca.leaf()
    for key in (_locked(), leaf.key_pem, ca.leaf().key_pem):
        with pytest.raises(CertificateError, match="a private key among its certificates"):
            read_leaf(leaf.pem + key)


@pytest.mark.process
def test_an_encrypted_key_asks_nobody_for_a_password(ca: Ca) -> None:
    """One hidden in the chain, had it come so far: OpenSSL would ask the terminal, and the watcher
    wait for it. Of 256 that it cannot decrypt it takes one for decrypted, and looks for the next.
    """
    leaf = ca.leaf()
    told = "=====".join((leaf.pem, _locked(), leaf.key_pem, ca.pem))
    # A terminal of its own, so that there is somebody to ask.
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", LOAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(theirs), os.O_RDWR)),
    ) as child:
        try:
            said, _ = child.communicate(told.encode(), timeout=20)
        finally:
            child.kill()
    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 100)  # no question
    os.close(theirs)
    os.close(ours)
    assert said in (b"refused\n", b"loaded\n")
