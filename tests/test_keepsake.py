"""The sealed file of the last known good: what opens, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mesh_middleware.certificates import KeyPair, Roots, read_leaf
from mesh_middleware.dev import DevAgent
from mesh_middleware.exceptions import ConfigError
from mesh_middleware.keepsake import Keepsake, KeepsakeError, Kept

NOW = 1_800_000_000.0
KEY = "ab" * 32


@pytest.fixture(scope="module")
def kept() -> Kept:
    """What a process of service tax would keep."""
    with DevAgent() as agent:
        chain, key = agent.issue("tax")
        root, _ = agent.issue("tax")
        return Kept(
            Roots(agent.trust_domain, (root,), "aa"),
            KeyPair(read_leaf(chain), key),
            {"tax": None},
            False,
        )


def keepsake(path: Path, *, key: str = KEY, purpose: str = "tax", age: float = 60.0) -> Keepsake:
    return Keepsake(path, key, purpose, age)


def test_what_was_kept_comes_back_whole(tmp_path: Path, kept: Kept) -> None:
    """A file saved and loaded with one key for one purpose gives the same values."""
    keepsake(tmp_path / "k").save(kept, NOW)
    assert keepsake(tmp_path / "k").load(NOW + 60) == kept


def test_file_is_for_this_user_alone_and_shows_nothing(tmp_path: Path, kept: Kept) -> None:
    """Mode 0600, and neither key nor certificate in it to be read; none beside it is left over."""
    keepsake(tmp_path / "k").save(kept, NOW)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    content = (tmp_path / "k").read_bytes()
    assert b"PRIVATE" not in content and b"CERTIFICATE" not in content
    assert os.listdir(tmp_path) == ["k"]


@pytest.mark.parametrize("place", [0, 30, 45, -1], ids=["magic", "nonce", "body", "tag"])
def test_changed_byte_is_refused(tmp_path: Path, kept: Kept, place: int) -> None:
    """One flipped bit anywhere, and the file does not open."""
    keepsake(tmp_path / "k").save(kept, NOW)
    content = bytearray((tmp_path / "k").read_bytes())
    content[place] ^= 1
    (tmp_path / "k").write_bytes(content)
    with pytest.raises(KeepsakeError):
        keepsake(tmp_path / "k").load(NOW)


@pytest.mark.parametrize(
    ("options", "when"),
    [
        ({"key": "cd" * 32}, NOW),
        ({"purpose": "order"}, NOW),
        ({}, NOW + 61),
        ({}, NOW - 301),
    ],
    ids=["wrong key", "another service", "too old", "from the future"],
)
def test_wrong_key_service_or_age_is_refused(
    tmp_path: Path, kept: Kept, options: dict[str, str], when: float
) -> None:
    """The file is good for one key, one service and agent, and a limited time."""
    keepsake(tmp_path / "k").save(kept, NOW)
    with pytest.raises(KeepsakeError, match="k: "):
        keepsake(tmp_path / "k", **options).load(when)


def test_file_survives_a_clock_that_was_set_back(tmp_path: Path, kept: Kept) -> None:
    """By minutes, as after a start before the time is known; its leaf is judged by the clock."""
    keepsake(tmp_path / "k").save(kept, NOW)
    assert keepsake(tmp_path / "k").load(NOW - 299) == kept


def test_file_that_others_can_read_is_refused(tmp_path: Path, kept: Kept) -> None:
    """Somebody loosened its mode: its key may be known."""
    keepsake(tmp_path / "k").save(kept, NOW)
    (tmp_path / "k").chmod(0o640)
    with pytest.raises(KeepsakeError, match="0600"):
        keepsake(tmp_path / "k").load(NOW)


def test_missing_file_and_foreign_file_are_told(tmp_path: Path) -> None:
    """Neither is an error of its own kind: the start goes on without."""
    with pytest.raises(KeepsakeError, match="No such file"):
        keepsake(tmp_path / "k").load(NOW)
    (tmp_path / "k").touch(mode=0o600)
    with pytest.raises(KeepsakeError, match="not a keepsake"):
        keepsake(tmp_path / "k").load(NOW)


def test_folder_that_cannot_be_written_is_told(tmp_path: Path, kept: Kept) -> None:
    """Saving fails with the file's name, and nothing is half-written."""
    with pytest.raises(KeepsakeError, match="nowhere"):
        keepsake(tmp_path / "nowhere" / "k").save(kept, NOW)


@pytest.mark.parametrize("key", ["", "abc", "ab" * 31, "zz" * 32], ids=repr)
def test_unusable_key_is_a_config_error_that_hides_it(tmp_path: Path, key: str) -> None:
    """32 bytes in hexadecimal or base64; the message says so and shows nothing of the key."""
    with pytest.raises(ConfigError) as caught:
        keepsake(tmp_path / "k", key=key)
    assert not key or key not in str(caught.value)
