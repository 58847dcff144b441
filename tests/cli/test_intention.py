"""``mesh intention`` against the dev agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware.dev import DevAgent, management_token

from .conftest import Run

READ = '{"Action": "allow", "HTTP": {"PathExact": "/tax", "Methods": ["GET"]}}'
REST = (
    '{"Action": "deny", "HTTP": {"PathPrefix": "/", "Header": [{"Name": "x-a", "Present": true}]}}'
)


@pytest.fixture(autouse=True)
def agent(mesh_agent: DevAgent, monkeypatch: pytest.MonkeyPatch) -> DevAgent:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", mesh_agent.url.removeprefix("http://"))
    return mesh_agent


def listed(run: Run) -> list[dict[str, Any]]:
    _, out, _ = run("intention", "list", "--json")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def test_created_it_is_listed_and_checked(run: Run) -> None:
    """create, list, check: the agent that CONSUL_HTTP_ADDR names has it."""
    assert run("intention", "create", "invoice", "tax", "--deny")[0] == 0
    code, out, _ = run("intention", "list")
    assert code == 0
    assert [line.split() for line in out.splitlines()][1] == ["invoice", "tax", "deny", "9"]
    assert run("intention", "check", "invoice", "tax") == (1, "denied\n", "")
    assert run("intention", "check", "order", "tax") == (0, "allowed\n", "")


def test_creating_again_replaces(run: Run) -> None:
    """One intention per pair, the last one written."""
    run("intention", "create", "invoice", "tax", "--deny")
    run("intention", "create", "invoice", "tax", "--allow", "--description", "since 2026")
    (found,) = listed(run)
    assert (found["Action"], found["Description"]) == ("allow", "since 2026")


def test_deleted_it_is_gone_and_deleting_again_is_fine(run: Run) -> None:
    """Both say what happened, both succeed."""
    run("intention", "create", "invoice", "tax", "--deny")
    assert run("intention", "delete", "invoice", "tax")[1] == "invoice -> tax: deleted\n"
    assert run("intention", "delete", "invoice", "tax")[1] == "invoice -> tax: there was none\n"
    assert run("intention", "list")[1] == "no intentions\n"


def test_permissions_keep_their_order(run: Run, agent: DevAgent) -> None:
    """Each --permission is one; the list reads them out."""
    agent.set_protocol("tax", "http")
    code, out, _ = run(
        "intention", "create", "invoice", "tax", "--permission", READ, "--permission", REST
    )
    assert (code, out) == (0, "invoice -> tax: allow GET /tax; deny any method /... [x-a]\n")
    assert [item["Action"] for item in listed(run)[0]["Permissions"]] == ["allow", "deny"]


def test_checking_permissions_says_why_it_is_no(run: Run, agent: DevAgent) -> None:
    """The agent denies the connection as a whole; the command says that requests are judged."""
    agent.set_protocol("tax", "http")
    run("intention", "create", "invoice", "tax", "--permission", READ)
    code, out, _ = run("intention", "check", "invoice", "tax")
    assert (code, out.splitlines()[0]) == (1, "denied")
    assert "each request is judged" in out
    _, out, _ = run("intention", "check", "invoice", "tax", "--json")
    assert json.loads(out) == {"Allowed": False, "Permissions": True}


@pytest.mark.parametrize("form", ["list", "object"])
def test_permissions_may_come_from_a_file(
    run: Run, agent: DevAgent, tmp_path: Path, form: str
) -> None:
    """A list, or an object with Permissions."""
    agent.set_protocol("tax", "http")
    permissions = [json.loads(READ), json.loads(REST)]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(permissions if form == "list" else {"Permissions": permissions}))
    assert run("intention", "create", "invoice", "tax", "--file", str(file))[0] == 0
    assert listed(run)[0]["Permissions"] == permissions


def test_permissions_on_tcp_are_refused_in_consuls_words(run: Run) -> None:
    """The agent's sentence tells what is missing."""
    code, out, err = run("intention", "create", "invoice", "tax", "--permission", READ)
    assert (code, out) == (1, "")
    assert 'service "tax" has protocol "tcp"' in err and err.count("\n") == 1


@pytest.mark.parametrize("example", ["fastapi_order", "flask_invoice", "flask_tax"])
def test_the_examples_intentions_can_be_written(run: Run, example: str) -> None:
    """--file alone takes config entries, as each example's README says."""
    file = Path(__file__).parents[2] / "examples" / example / "intentions.json"
    assert run("intention", "create", "--file", str(file))[0] == 0
    assert {item["SourceName"] for item in listed(run)} >= {"*"}


@pytest.mark.parametrize(
    "text",
    ["{", "7", '[{"Kind": "service-intentions"}]', '[{"Name": "tax"}]'],
    ids=["no JSON", "a number", "no Name", "no Kind"],
)
def test_a_file_of_something_else_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    """Nothing is written, the file is named, exit code 2."""
    file = tmp_path / "entries.json"
    file.write_text(text)
    code, _, err = run("intention", "create", "--file", str(file))
    assert code == 2 and str(file) in err or "object is wanted" in err
    assert listed(run) == []


def test_an_empty_list_of_permissions_is_refused(run: Run, tmp_path: Path) -> None:
    """It would be an intention that says nothing."""
    file = tmp_path / "rules.json"
    file.write_text("[]")
    code, _, err = run("intention", "create", "invoice", "tax", "--file", str(file))
    assert code == 2 and "a list of permissions is wanted" in err


def test_the_option_wins_over_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch, agent: DevAgent
) -> None:
    """--agent, then MESH_AGENT, then CONSUL_HTTP_ADDR."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "127.0.0.1:1")
    monkeypatch.setenv("MESH_AGENT", agent.url)
    assert run("intention", "list")[0] == 0
    monkeypatch.setenv("MESH_AGENT", "http://127.0.0.1:1")
    assert run("intention", "list", "--agent", agent.url)[0] == 0


def test_a_token_is_sent_and_a_missing_one_is_named(
    run: Run, mesh_agents: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CONSUL_HTTP_TOKEN_FILE is read; without it the agent's refusal is one line."""
    closed = mesh_agents(acl={"secret": management_token()}, default_policy="deny")
    code, _, err = run("intention", "create", "a", "b", "--allow", "--agent", closed.url)
    assert code == 1 and "ermission" in err and err.count("\n") == 1
    file = tmp_path / "token"
    file.write_text("secret\n")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN_FILE", str(file))
    assert run("intention", "create", "a", "b", "--allow", "--agent", closed.url)[0] == 0


def test_a_token_file_that_is_not_there_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting is wrong: exit code 2."""
    monkeypatch.setenv("CONSUL_HTTP_TOKEN_FILE", "/nowhere/token")
    code, _, err = run("intention", "list")
    assert code == 2 and "/nowhere/token" in err
