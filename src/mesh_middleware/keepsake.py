"""
The last known good: what a process believed, kept on disk for a start without the agent.

Off unless a file and a key are given. Owns the sealed file: AES-256-GCM, mode 0600, replaced
whole, good for one service, one agent and a limited time. A file that cannot be opened, is too
old or was changed is refused; what it holds is judged anew like any answer of the agent.

Source: NIST SP 800-38D (GCM, random 96-bit nonces); reliability.md, R13.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .certificates import KeyPair, Roots, read_leaf
from .exceptions import CertificateError, ConfigError, MeshError
from .regular_file import demand_regular

MAGIC = b"mesh_middleware keepsake 1\n"
NONCE_BYTES = 12
KEY_BYTES = 32
MAX_BYTES = 64 * 1024 * 1024
CLOCK_STEP = 300.0
"""Seconds by which a clock may have been set back since the file was written."""


class KeepsakeError(MeshError):
    """The file of the last known good is refused; the message says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """
    What is kept.

    Args:
        roots: the CA certificates that were trusted.
        pair: our leaf and its key; hidden from ``repr``.
        match: the agent's answer about intentions: decoded JSON, or its bytes.
        default_allow: the default policy.
        entries: config entries and keys of jwt-providers, as JSON; ``None`` when not told.
    """

    roots: Roots
    pair: KeyPair = field(repr=False)
    match: Any = field(repr=False)
    default_allow: bool | None
    entries: Any = field(default=None, repr=False)


class Keepsake:
    """
    The sealed file of one service.

    Args:
        path: the file.
        key: 32 bytes in base64 or hexadecimal.
        purpose: service and agent it is good for; a file of another purpose does not open.
        max_age: seconds after which it is refused.

    Raises:
        ConfigError: the key has another length or alphabet. The message holds none of it.
    """

    def __init__(self, path: Path, key: str, purpose: str, max_age: float) -> None:
        self._path = path
        self._cipher = AESGCM(_read_key(key))
        self._purpose = MAGIC + purpose.encode()
        self._max_age = max_age

    def __repr__(self) -> str:
        return f"<Keepsake {self._path}>"

    def save(self, kept: Kept, now: float) -> None:
        """
        Replace the file.

        Args:
            now: this moment in seconds since the epoch.

        Raises:
            KeepsakeError: the file cannot be written; the old one stays.
        """
        plain = json.dumps({"saved": now, **_to_json(kept)}).encode()
        nonce = os.urandom(NONCE_BYTES)
        sealed = MAGIC + nonce + self._cipher.encrypt(nonce, plain, self._purpose)
        try:
            _replace(self._path, sealed)
        except OSError as error:
            raise KeepsakeError(f"{self._path}: {error.strerror}") from None

    def load(self, now: float) -> Kept:
        """
        Open the file.

        Raises:
            KeepsakeError: there is none, it is readable by others, tampered with, of another
                service or key, or too old.
        """
        plain = self._open()
        try:
            body = json.loads(plain)
            age = now - float(body["saved"])
            if not -CLOCK_STEP <= age <= self._max_age:
                raise KeepsakeError(f"{self._path}: {age:.0f} s old, {self._max_age:.0f} s allowed")
            return _from_json(body)
        except (ValueError, KeyError, TypeError, CertificateError) as error:
            raise KeepsakeError(f"{self._path}: {type(error).__name__} in its content") from None

    def _open(self) -> bytes:
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(self._path, flags), "rb") as file:
                demand_regular(file.fileno(), self._path)
                seen = os.fstat(file.fileno())
                sealed = file.read(MAX_BYTES)
        except OSError as error:
            raise KeepsakeError(f"{self._path}: {error.strerror}") from None
        if seen.st_mode & 0o077 or seen.st_uid != os.geteuid():
            raise KeepsakeError(f"{self._path}: has to belong to this user alone (mode 0600)")
        if not sealed.startswith(MAGIC):
            raise KeepsakeError(f"{self._path}: not a keepsake")
        nonce = sealed[len(MAGIC) : len(MAGIC) + NONCE_BYTES]
        try:
            return self._cipher.decrypt(nonce, sealed[len(MAGIC) + NONCE_BYTES :], self._purpose)
        except (InvalidTag, ValueError):
            raise KeepsakeError(
                f"{self._path}: tampered with, or sealed with another key or for another service"
            ) from None


def _read_key(text: str) -> bytes:
    for decode in (bytes.fromhex, lambda t: base64.b64decode(t, validate=True)):
        with suppress(ValueError, binascii.Error):
            key: bytes = decode(text)
            if len(key) == KEY_BYTES:
                return key
    raise ConfigError("keep_key: 32 bytes in hexadecimal or base64 are expected")


def _replace(path: Path, content: bytes) -> None:
    # Renaming would put a file in the place of whatever stands there, a device included.
    with suppress(FileNotFoundError):
        demand_regular(path)
    # mkstemp makes the file 0600; it is renamed over the old one only when it is whole.
    descriptor, name = tempfile.mkstemp(prefix=".keepsake-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _to_json(kept: Kept) -> dict[str, Any]:
    return {
        "trust_domain": kept.roots.trust_domain,
        "roots": list(kept.roots.certificates),
        "active": kept.roots.active,
        "chain": kept.pair.leaf.chain_pem,
        "key": kept.pair.key_pem,
        "match": json.loads(kept.match) if isinstance(kept.match, bytes) else kept.match,
        "default_allow": kept.default_allow,
        "entries": kept.entries,
    }


def _from_json(body: dict[str, Any]) -> Kept:
    roots = Roots(body["trust_domain"], tuple(body["roots"]), body["active"])
    pair = KeyPair(read_leaf(body["chain"]), body["key"])
    return Kept(roots, pair, body["match"], body["default_allow"], body.get("entries"))
