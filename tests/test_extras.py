"""What is said where an extra is not installed: its name, as the command that installs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .support.servers import clean_environment

pytestmark = pytest.mark.process

LACKING = [
    ("flask", "from mesh_middleware import MeshNative", "flask"),
    ("flask", "from mesh_middleware.flask import mesh_peer", "flask"),
    ("httpx2", "from mesh_middleware.httpx2 import Client", "httpx2"),
    ("dns", "import mesh_middleware.resolve_dns as r; r.DnsResolver('consul')", "dns"),
    ("hypercorn", "import mesh_middleware.dev as d; d.DevAgent().start()", "cli"),
    ("typer", "import mesh_middleware.cli as c; exit(c.main(['status']))", "cli"),
    ("rich", "import mesh_middleware.cli as c; exit(c.main(['status']))", "cli"),
    ("fastapi", "import mesh_middleware.cli as c; exit(c.main(['demo']))", "cli,fastapi,flask"),
]


def run(lacking: str, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a Python that has no module *lacking*."""
    block = f"""
import importlib.abc, sys
class Nowhere(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {lacking!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Nowhere())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.partition(".")[0] == {lacking!r} else found(name, package)
)
"""
    return subprocess.run(
        [sys.executable, "-c", block + code, *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("lacking", "code", "extra"), LACKING, ids=lambda value: value[:60])
def test_a_missing_extra_is_named(lacking: str, code: str, extra: str) -> None:
    """The last line is the way out, to be copied."""
    done = run(lacking, code)
    assert done.returncode != 0
    assert f"pip install 'mesh-middleware[{extra}]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("lacking", "reason", "rule"),
    [
        ("re2", "no_regex_engine", {"HTTP": {"PathRegex": "/t.*"}}),
        (
            "jwt",
            "jwt_no_engine",
            {"HTTP": {"PathPrefix": "/"}, "JWT": {"Providers": [{"Name": "okta"}]}},
        ),
    ],
    ids=["re2", "jwt"],
)
def test_a_verdict_without_its_engine_says_what_to_install(
    lacking: str, reason: str, rule: dict[str, object], tmp_path: Path
) -> None:
    """The request is denied; ``mesh explain`` ends with the command."""
    permission = {"Action": "allow", **rule}
    rules = tmp_path / "rules.json"
    rules.write_text(
        json.dumps([{"SourceName": "shop", "DestinationName": "tax", "Permissions": [permission]}])
    )
    keys = {"Local": {"JWKS": {"keys": []}}}
    provider = tmp_path / "okta.json"
    provider.write_text(json.dumps({"Name": "okta", "Issuer": "x", "JSONWebKeySet": keys}))
    done = run(
        lacking,
        "import mesh_middleware.cli as c; exit(c.main())",
        *("explain", "shop", "GET", "/tax", "--intentions", str(rules)),
        *("--jwt-providers", str(provider)),
    )
    assert done.returncode == 1 and done.stderr == ""
    assert reason in done.stdout
    assert done.stdout.splitlines()[-1].strip() == f"pip install 'mesh-middleware[{lacking}]'"
