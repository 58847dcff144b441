"""What holds for every request: methods, parameters, errors, forms."""

from __future__ import annotations

import pytest

from .target import Target, index_of


def test_unknown_path_is_an_empty_404(agent: Target) -> None:
    """An unknown path answers 404 and nothing else."""
    answer = agent.get("/v1/nope")
    assert (answer.status_code, answer.content) == (404, b"")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/agent/connect/authorize", "OPTIONS,POST"),
        ("DELETE", "/v1/agent/connect/ca/roots", "OPTIONS,GET"),
        ("GET", "/v1/agent/service/register", "OPTIONS,PUT"),
        ("GET", "/v1/agent/check/pass/x", "OPTIONS,PUT"),
        ("POST", "/v1/connect/intentions/exact", "OPTIONS,GET,PUT,DELETE"),
        ("DELETE", "/v1/connect/intentions", "OPTIONS,GET,POST"),
        ("POST", "/v1/connect/ca/configuration", "OPTIONS,GET,PUT"),
    ],
)
def test_wrong_method_names_the_right_ones(
    agent: Target, method: str, path: str, allow: str
) -> None:
    """405 carries Allow and says which method it was."""
    answer = agent.request(method, path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allow)
    assert answer.text == f"method {method} not allowed"
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_options_names_the_methods(agent: Target) -> None:
    """OPTIONS answers 200 with Allow."""
    answer = agent.request("OPTIONS", "/v1/connect/intentions/exact")
    assert (answer.status_code, answer.headers["Allow"]) == (200, "OPTIONS,GET,PUT,DELETE")


def test_head_is_not_get(agent: Target) -> None:
    """HEAD is refused like any other wrong method."""
    assert agent.request("HEAD", "/v1/agent/self").status_code == 405


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("index=x", 400, "Invalid index"),
        ("index=-1", 400, "Invalid index"),
        ("index=1&wait=abc", 400, "Invalid wait time"),
        ("wait=5", 400, "Invalid wait time"),
        ("stale&consistent", 400,
         "Cannot specify ?stale with ?consistent, conflicting semantics."),
        ("dc=elsewhere", 500, "No path to datacenter"),
    ],
)  # fmt: skip
def test_bad_parameters_are_named(agent: Target, query: str, status: int, text: str) -> None:
    """A bad parameter is refused with Consul's own text."""
    answer = agent.get(f"/v1/health/connect/web?{query}")
    assert (answer.status_code, answer.text) == (status, text)
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("flag", ["stale", "stale=", "stale=1", "consistent"])
def test_flags_are_there_or_not(agent: Target, flag: str) -> None:
    """Flag parameters have no value, and both consistency modes are served."""
    answer = agent.get(f"/v1/health/connect/web?{flag}")
    assert (answer.status_code, answer.json()) == (200, [])


@pytest.mark.parametrize(
    "path",
    [
        "/v1/agent/connect/ca/roots",
        "/v1/connect/ca/roots",
        "/v1/connect/intentions",
        "/v1/health/connect/none",
        "/v1/health/service/none",
        "/v1/catalog/services",
        "/v1/catalog/service/none",
        "/v1/catalog/connect/none",
        "/v1/catalog/nodes",
        "/v1/config/service-defaults",
        "/v1/config/service-defaults/none",
        "/v1/discovery-chain/none",
    ],
)
def test_blocking_endpoints_have_a_usable_index(agent: Target, path: str) -> None:
    """The index is never 0, leader and contact are told, the type is set."""
    answer = agent.get(path)
    assert index_of(answer) >= 1
    assert answer.headers["X-Consul-Knownleader"] in ("true", "false")
    assert answer.headers["X-Consul-Lastcontact"] == "0"
    assert answer.headers["Content-Type"] in ("application/json", "text/plain; charset=utf-8")


def test_pretty_indents(agent: Target) -> None:
    """``?pretty`` indents by four spaces."""
    assert '{\n    "' in agent.get("/v1/agent/self?pretty").text


def test_markup_is_escaped_in_json(agent: Target) -> None:
    """``<``, ``>`` and ``&`` never appear literally, as Go's encoder has it."""
    name = agent.name()
    agent.register(Name=name, Meta={"note": "<b>&</b>"}, Port=1)
    answer = agent.get(f"/v1/agent/service/{name}")
    assert not set("<>&") & set(answer.text)
    assert answer.json()["Meta"] == {"note": "<b>&</b>"}


def test_broken_json_is_a_400(agent: Target) -> None:
    """A body that is no JSON is refused as such."""
    answer = agent.request("PUT", "/v1/agent/service/register", headers={}, body=None)
    assert answer.status_code == 400
    broken = agent.client.put("/v1/agent/service/register", content=b"{")
    assert broken.status_code == 400
    assert broken.text.startswith("Request decode failed: ")


def test_the_agent_describes_itself(agent: Target) -> None:
    """self, members, leader, peers and nodes name one node in one datacenter."""
    config = agent.get("/v1/agent/self").json()["Config"]
    assert config["Server"] is True
    assert agent.get("/v1/agent/self").json()["DebugConfig"]["ACLDefaultPolicy"] == "allow"
    assert agent.get("/v1/agent/self").json()["DebugConfig"]["ACLsEnabled"] is False
    (member,) = agent.get("/v1/agent/members?segment=_all").json()
    assert member["Tags"]["dc"] == config["Datacenter"] == "dc1"
    (node,) = agent.get("/v1/catalog/nodes").json()
    assert (node["ID"], node["Node"]) == (config["NodeID"], config["NodeName"])
    assert agent.get("/v1/catalog/datacenters").json() == ["dc1"]
    assert agent.get("/v1/status/peers").json() == [agent.get("/v1/status/leader").json()]


@pytest.mark.parametrize("parameter", ["ns", "partition"])
def test_dev_agent_refuses_what_is_enterprise(dev: Target, parameter: str) -> None:
    """Namespaces and partitions get 400 even with their default value, as since 1.9 and 1.11."""
    answer = dev.get(f"/v1/connect/intentions?{parameter}=default")
    assert answer.status_code == 400
    assert f'Invalid query parameter: "{parameter}"' in answer.text
    assert dev.get("/v1/connect/intentions", headers={"X-Consul-Namespace": "x"}).status_code == 400


def test_dev_agent_tells_its_default_policy_even_in_errors(dev: Target) -> None:
    """The header is on every API answer since 1.9, and on no answer to an unknown path."""
    for path in ("/v1/agent/self", "/v1/health/connect/web?index=x", "/v1/agent/service/none"):
        assert dev.get(path).headers["X-Consul-Default-Acl-Policy"] == "allow"
    assert "X-Consul-Default-Acl-Policy" not in dev.get("/v1/nope").headers


def test_dev_agent_answers_local_names_only(dev: Target) -> None:
    """A page that points its own name at loopback cannot read the agent (DNS rebinding)."""
    answer = dev.get("/v1/agent/connect/ca/leaf/x", headers={"Host": "evil.example"})
    assert answer.status_code == 403
    for host in ("localhost:8500", "127.0.0.1", "[::1]:8500", "agent.localhost"):
        assert dev.get("/v1/status/leader", headers={"Host": host}).status_code == 200
