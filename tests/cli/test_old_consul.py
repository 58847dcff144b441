"""``mesh intention`` and ``mesh status`` on a real Consul, where intentions may go by UUID."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from mesh_middleware.cli.api import AgentApi
from mesh_middleware.cli.rules import NotOfferedError, Rules
from tests.support.consul import RealConsul

from .conftest import Run

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def agent(old_consul: RealConsul, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentApi]:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", old_consul.url)
    with AgentApi(old_consul.url) as api:
        yield api
        rules = Rules(api)
        for item in rules.all():
            rules.delete(item["SourceName"], item["DestinationName"])


def test_create_replace_check_delete(run: Run) -> None:
    """The same commands as on a newer Consul, whatever calls it takes."""
    assert run("intention", "create", "invoice", "tax", "--deny")[0] == 0
    assert run("intention", "check", "invoice", "tax") == (1, "denied\n", "")
    assert run("intention", "create", "invoice", "tax", "--allow")[0] == 0
    assert run("intention", "check", "invoice", "tax") == (0, "allowed\n", "")
    found = json.loads(run("intention", "list", "--json")[1])
    assert [item["Action"] for item in found] == ["allow"]
    assert run("intention", "delete", "invoice", "tax")[1].endswith(": deleted\n")
    assert run("intention", "list")[1] == "no intentions\n"


def test_permissions_are_written_or_said_not_to_be_offered(agent: AgentApi) -> None:
    """What a version does not have is an error of its own, which the demo does not count."""
    rules = Rules(agent)
    permission = {"Action": "allow", "HTTP": {"PathPrefix": "/"}}
    if rules.by_name():
        agent.put("/v1/config", {"Kind": "service-defaults", "Name": "tax", "Protocol": "http"})
        rules.write("invoice", "tax", {"Permissions": [permission]})
        assert rules.find("invoice", "tax")
    else:
        with pytest.raises(NotOfferedError, match=r"1\.9"):
            rules.write("invoice", "tax", {"Permissions": [permission]})


def test_sources_of_a_config_entry_are_written(agent: AgentApi) -> None:
    """An ``intentions.json`` without permissions works on every version."""
    sources = [{"Name": "order", "Action": "allow"}, {"Name": "*", "Action": "deny"}]
    entry = {"Kind": "service-intentions", "Name": "invoice", "Sources": sources}
    rules = Rules(agent)
    rules.write_entry(entry)
    assert (rules.check("order", "invoice"), rules.check("shop", "invoice")) == (True, False)


def test_status_reads_a_real_consul(run: Run) -> None:
    """Trust domain, roots and default policy are found without any right."""
    found = json.loads(run("status", "--json")[1])
    assert found["trust_domain"].endswith(".consul")
    assert found["default_policy"] == "allow"
    assert [root["active"] for root in found["roots"]] == [True]


def test_two_commands_at_once_do_not_disturb_each_other(agent: AgentApi) -> None:
    """Each pair gets its own intention, whoever writes first."""
    rules = [Rules(agent), Rules(agent)]
    threads = [
        threading.Thread(target=rule.write, args=(source, "tax", {"Action": "deny"}))
        for rule, source in zip(rules, ("a", "b"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(item["SourceName"] for item in rules[0].all()) == ["a", "b"]
