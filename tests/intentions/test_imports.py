"""What a service pays for at its start: libraries are imported by those who use them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

PROGRAM = """
import json, sys
# httpx imports these for its own command where they are installed; a service has them not.
sys.modules.update(dict.fromkeys(("click", "rich", "pygments")))
import mesh_middleware.asgi, mesh_middleware.wsgi
from mesh_middleware.consul.intentions import parse_intentions
from mesh_middleware.identity import ServiceId
from mesh_middleware.intentions import AsgiFacts, WsgiFacts, compile_policy

jwt = {"Providers": [{"Name": "okta"}]} if "jwt" in sys.argv else None
rules = [{"Action": "allow", "HTTP": {"PathRegex": "/v[0-9]+"}, "JWT": jwt}]
policy = compile_policy(
    parse_intentions([{"SourceName": "api", "DestinationName": "web", "Permissions": rules}]),
    service="web", trust_domain="x.consul", default_allow=False,
)
compiled = "jwt" in sys.modules
scope = {"method": "GET", "path": "/v1", "raw_path": b"/v1", "query_string": b"", "headers": []}
environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/v1"}
verdicts = [
    policy.decide(ServiceId("x.consul", "default", "dc1", "api"), facts).reason
    for facts in (AsgiFacts(scope), WsgiFacts(environ))
]
names = ("jwt", "typer", "pytest", "mesh_middleware.cli", "mesh_middleware.dev")
print(json.dumps({"verdicts": verdicts, "compiled": compiled,
                  "imported": [name for name in names if name in sys.modules]}))
"""


def run(*arguments: str) -> dict[str, object]:
    """Run the program in an interpreter of its own; what it tells."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_a_service_without_tokens_imports_no_library_of_tokens_and_commands() -> None:
    """Both doors, a policy with a pattern, two verdicts: no PyJWT, typer, rich or pytest."""
    assert run() == {
        "verdicts": ["permission_allow"] * 2, "compiled": False, "imported": [],
    }  # fmt: skip


def test_a_policy_that_demands_tokens_imports_their_library_before_the_first_request() -> None:
    """PyJWT is there once the policy is compiled: no request waits for the disk."""
    assert run("jwt") == {
        "verdicts": ["jwt_unknown_provider"] * 2, "compiled": True, "imported": ["jwt"],
    }  # fmt: skip
