"""
The load client: compiled once, run once per measurement.

Owns ``load.c``, the program, and the reading of what it prints. The caller gets a moment between
warm-up and load, to read counters.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("load.c")
RUN_SECONDS = 120.0
"""Longest run: the client ends itself after as many."""


class LoadError(Exception):
    """The load client cannot be had, or a run of it failed."""


@dataclass(frozen=True, slots=True)
class Identity:
    """
    What the load client shows and trusts.

    Args:
        certificate: file with its chain.
        key: file with its key.
        roots: file with the CA certificates.
    """

    certificate: Path
    key: Path
    roots: Path


@dataclass(frozen=True, slots=True)
class Load:
    """
    One run of the load client.

    Args:
        port: on loopback.
        path: requested.
        concurrent: connections.
        warm: requests before the counted ones.
        count: requests that count.
        new: whether each request gets a connection of its own.
    """

    port: int
    path: str
    concurrent: int
    warm: int
    count: int
    new: bool = False


def build(cache: Path) -> Path:
    """
    Compile the load client, unless that was done before.

    Args:
        cache: folder that keeps the program.

    Raises:
        LoadError: there is no compiler, or no OpenSSL to compile against; one line says which.
    """
    source = SOURCE.read_bytes()
    program = cache / f"load-{hashlib.sha256(source).hexdigest()[:12]}"
    if program.exists():
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise LoadError("no C compiler (cc) for bench/load.c: install gcc and libssl-dev")
    cache.mkdir(parents=True, exist_ok=True)
    made = program.with_suffix(f".{os.getpid()}")
    command = [compiler, "-O2", str(SOURCE), "-o", str(made), "-lssl", "-lcrypto"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    if done.returncode != 0:
        if "openssl/" in done.stderr or "-lssl" in done.stderr or "-lcrypto" in done.stderr:
            raise LoadError("no OpenSSL headers to compile bench/load.c with: install libssl-dev")
        raise LoadError(f"bench/load.c does not compile: {done.stderr.strip()}")
    made.rename(program)
    return program


def run(
    program: Path,
    load: Load,
    identity: Identity | None,
    *,
    begin: Callable[[int], None] = lambda pid: None,
) -> dict[str, Any]:
    """
    Run the load client.

    Args:
        program: from `build`.
        load: what it does.
        identity: what it shows; without one it speaks plain HTTP.
        begin: called with its process id after the warm-up, right before the requests that count.

    Returns:
        What it printed: ``rps``, ``p50_us``, ``p99_us``, ``errors``, ``client_cpu_s`` and more.

    Raises:
        LoadError: it failed, or a request did.
    """
    command = [
        str(program), "127.0.0.1", str(load.port), load.path, str(load.concurrent),
        str(load.warm), str(load.count), "new" if load.new else "keep",
    ]  # fmt: skip
    if identity is not None:
        command += map(str, (identity.certificate, identity.key, identity.roots))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        try:
            assert client.stdin is not None and client.stdout is not None
            if client.stdout.readline() == "READY\n":
                begin(client.pid)
            out, err = client.communicate("\n", timeout=RUN_SECONDS)
        finally:
            client.kill()
    if client.returncode != 0:
        raise LoadError(f"the load client failed: {err.strip() or client.returncode}")
    told: dict[str, Any] = json.loads(out)
    if told["errors"] or told["warm_errors"]:
        raise LoadError(f"{told['errors'] + told['warm_errors']} requests failed at {load}")
    return told
