"""Files that settings name are regular files, read no further than is allowed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh_middleware import Mesh
from mesh_middleware.config import load_settings
from mesh_middleware.consul.client import MAX_TOKEN_FILE, check_files
from mesh_middleware.consul.providers import KeySource
from mesh_middleware.dev import DevAgent
from mesh_middleware.exceptions import ConfigError
from mesh_middleware.jwks import MAX_JWKS_BYTES, KeysError, fetch_keys
from mesh_middleware.regular_file import NotRegularError, read_regular_file

from .support.servers import PATIENCE, until


def fifo(path: Path) -> Path:
    """A FIFO that nobody writes to."""
    os.mkfifo(path)
    return path


ODD: dict[str, Callable[[Path], Path]] = {
    "FIFO": fifo,
    "device": lambda path: Path("/dev/zero"),
    "folder": lambda path: path.parent,
    "link to a FIFO": lambda path: _link(path, fifo(path.with_name("fifo"))),
    "link to a device": lambda path: _link(path, Path("/dev/zero")),
}


def _link(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    """Neither waited for nor read."""
    with pytest.raises((NotRegularError, IsADirectoryError)):
        read_regular_file(ODD[kind](tmp_path / "file"), 10)


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    """One byte more tells that there are more; a link to a regular file is one."""
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular_file(tmp_path / "link", 10) == b"x" * 11
    assert read_regular_file(tmp_path / "file", 100) == b"x" * 100


@pytest.mark.parametrize("kind", ODD)
def test_keys_are_read_from_regular_files_only(kind: str, tmp_path: Path) -> None:
    """The watcher's loop turns meanwhile, and its memory stays."""
    source = KeySource(f"file://{ODD[kind](tmp_path / 'keys')}")
    with pytest.raises(KeysError, match="regular file|directory"):
        asyncio.run(asyncio.wait_for(fetch_keys(source), PATIENCE))


def test_a_file_of_keys_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """As an answer over HTTP is."""
    (tmp_path / "keys").write_bytes(b" " * (MAX_JWKS_BYTES + 1))
    with pytest.raises(KeysError, match="over"):
        asyncio.run(fetch_keys(KeySource(f"file://{tmp_path / 'keys'}")))


@pytest.mark.parametrize("kind", ["FIFO", "folder", "link to a FIFO", "link to a device"])
def test_a_sealed_file_that_is_none_does_not_hold_up_the_start(kind: str, tmp_path: Path) -> None:
    """It is refused, the agent is asked, and nothing is put in its place."""
    path = ODD[kind](tmp_path / "sealed")
    before = path.lstat()
    options = {"keep_file": str(path), "keep_key": "00" * 32}
    with DevAgent() as agent, Mesh("tax", agent=agent.url, **options) as mesh:
        assert mesh.ready(PATIENCE)
        assert mesh.status()["events"]["keepsake_refused"] == 1
        until(lambda: "keepsake_not_saved" in mesh.status()["events"], "the refusal to write")
    after = path.lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("option", ["ca_file", "client_cert"])
def test_files_for_the_agents_tls_are_regular(option: str, kind: str, tmp_path: Path) -> None:
    """A start says so in one line, instead of standing still."""
    path = str(ODD[kind](tmp_path / "pem"))
    more = {"client_key": path} if option == "client_cert" else {}
    given = {"service": "tax", "agent": "https://127.0.0.1:1", option: path, **more}
    with pytest.raises(ConfigError, match=option):
        check_files(load_settings(given, environ={}))


@pytest.mark.parametrize("kind", ["FIFO", "device", "too large"])
def test_a_token_file_is_regular_and_small(kind: str, tmp_path: Path) -> None:
    """It is read for each question: a trouble with the agent, and not the end of the watches."""
    path = tmp_path / "token"
    if kind == "too large":
        path.write_bytes(b"x" * (MAX_TOKEN_FILE + 1))
    else:
        path = ODD[kind](path)
    with DevAgent() as agent, Mesh("tax", agent=agent.url, token_file=str(path)) as mesh:
        until(lambda: mesh.status()["troubles"], "the trouble")
        assert "token_unusable" in str(mesh.status()["troubles"])
