"""Keys and certificates that an agent, or whoever answers in its place, could send."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from cryptography.hazmat.primitives import serialization

from ..support.certs import Ca, make_key

LOAD = """
import sys
from mesh_middleware.certificates import KeyPair, Roots, check_key, read_leaf
from mesh_middleware.exceptions import CertificateError
from mesh_middleware.tls import Generation

chain, key, root = sys.stdin.read().split("=====")
pair = KeyPair(read_leaf(chain), key)
check_key(pair)
try:
    Generation(pair, Roots(pair.leaf.id.trust_domain, (root,), "00"), 1)
except CertificateError:
    print("refused")
"""


def test_an_encrypted_key_asks_nobody_for_a_password(ca: Ca) -> None:
    """One hidden in the chain: OpenSSL would ask the terminal, and the watcher wait for it."""
    locked = make_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"x"),
    )
    leaf = ca.leaf()
    told = "=====".join((leaf.pem + locked.decode(), leaf.key_pem, ca.pem))
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
    os.close(theirs)
    os.close(ours)
    assert said == b"refused\n"
