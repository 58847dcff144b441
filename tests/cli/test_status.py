"""``mesh status``: what the agent knows, for people and as data."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from mesh_middleware.dev import DevAgent, service_token

from .conftest import Run


@pytest.fixture
def registered(mesh_agent: DevAgent) -> DevAgent:
    """An agent with a healthy native service, a critical one, and one that is not native."""
    for name, native, state in (
        ("tax", True, "passing"),
        ("invoice", True, "critical"),
        ("plain", False, "passing"),
    ):
        check = {"CheckID": f"{name}-ttl", "TTL": "60s", "Status": state, "Notes": ""}
        body = {
            "ID": f"{name}-5003",
            "Name": name,
            "Address": "127.0.0.1",
            "Port": 5003,
            "Checks": [check],
        }
        if native:
            body["Connect"] = {"Native": True}
        url = f"{mesh_agent.url}/v1/agent/service/register"
        httpx.put(url, json=body, trust_env=False).raise_for_status()
    return mesh_agent


def test_native_services_are_shown_with_their_health(run: Run, registered: DevAgent) -> None:
    """Those that are not native are not of the mesh."""
    found = json.loads(run("status", "--json", "--agent", registered.url)[1])
    services = {item["service"]: (item["id"], item["health"]) for item in found["services"]}
    assert services == {"tax": ("tax-5003", "passing"), "invoice": ("invoice-5003", "critical")}


def test_people_read_the_same(run: Run, registered: DevAgent) -> None:
    """One line per fact, a table of services."""
    code, out, err = run("status", "--agent", registered.url)
    assert (code, err) == (0, "")
    assert f"trust domain    {registered.trust_domain}" in out
    assert any(line.split()[:4] == ["tax", "tax-5003", "127.0.0.1:5003", "passing"]
               for line in out.splitlines())  # fmt: skip


def test_an_empty_agent_says_so(run: Run, mesh_agent: DevAgent) -> None:
    """No table without services."""
    assert "none is registered" in run("status", "--agent", mesh_agent.url)[1]


def test_old_roots_are_told_from_the_active_one(run: Run, mesh_agent: DevAgent) -> None:
    """After a rotation both are trusted, one signs."""
    mesh_agent.rotate_ca()
    found = json.loads(run("status", "--json", "--agent", mesh_agent.url)[1])
    assert sorted(root["active"] for root in found["roots"]) == [False, True]
    assert "still trusted" in run("status", "--agent", mesh_agent.url)[1]


@pytest.mark.parametrize("policy", ["allow", "deny"])
def test_the_default_policy_is_found_out(run: Run, mesh_agents: Any, policy: str) -> None:
    """By asking about two names that nobody has."""
    agent = mesh_agents(default_policy=policy)
    found = json.loads(run("status", "--json", "--agent", agent.url)[1])
    assert found["default_policy"] == policy


def test_a_wildcard_intention_hides_the_default(run: Run, mesh_agent: DevAgent) -> None:
    """`* -> *` decides for everyone, so the default cannot be seen, and that is said."""
    mesh_agent.deny("*", "*")
    found = json.loads(run("status", "--json", "--agent", mesh_agent.url)[1])
    assert found["default_policy"] == "hidden by an intention for * -> *"


def test_a_token_that_may_not_ask_leaves_the_default_unknown(
    run: Run, mesh_agents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else is shown all the same."""
    agent = mesh_agents(acl={"secret": service_token("tax")}, default_policy="deny")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "secret")
    code, out, _ = run("status", "--json", "--agent", agent.url)
    assert code == 0
    assert json.loads(out)["default_policy"].startswith("unknown")


def test_no_name_becomes_a_picture(run: Run, mesh_agent: DevAgent) -> None:
    """Root IDs are digits with colons, and paths may have any: ``:ab:`` is no emoji."""
    body = {"ID": "tax-:ab:", "Name": "tax", "Port": 5003, "Connect": {"Native": True}}
    url = f"{mesh_agent.url}/v1/agent/service/register"
    httpx.put(url, json=body, trust_env=False).raise_for_status()
    mesh_agent.set_protocol("tax", "http")
    asked = ("--agent", mesh_agent.url)
    assert "tax-:ab:" in run("status", *asked)[1]
    assert "/:ab:" in run("explain", "web", "GET", "/:ab:", "--service", "tax", *asked)[1]
    permission = '{"Action": "deny", "HTTP": {"PathExact": "/:ab:"}}'
    run("intention", "create", "web", "tax", "--permission", permission, *asked)
    assert "/:ab:" in run("intention", "list", *asked)[1]
