"""Services, checks, health and catalog."""

from __future__ import annotations

from typing import Any

import pytest

from .target import Target

REGISTER = "/v1/agent/service/register"


def checks(agent: Target, service: str) -> dict[str, dict[str, Any]]:
    """The agent's checks of one instance."""
    found = agent.get("/v1/agent/checks").json().items()
    return {key: check for key, check in found if check["ServiceID"] == service}


def health(agent: Target, kind: str, name: str, query: str = "") -> Any:
    """Health entries."""
    return agent.get(f"/v1/health/{kind}/{name}?{query}").json()


def test_registered_service_reads_back(agent: Target) -> None:
    """The ID defaults to the name, weights to one, lists and maps to empty."""
    name = agent.name()
    answer = agent.put(REGISTER, {"Name": name, "Port": 80})
    assert (answer.status_code, answer.content) == (200, b"")
    assert "Content-Type" not in answer.headers
    found = agent.get("/v1/agent/services").json()[name]
    expected = {
        "ID": name, "Service": name, "Tags": [], "Meta": {}, "Port": 80, "Address": "",
        "Weights": {"Passing": 1, "Warning": 1}, "EnableTagOverride": False,
    }  # fmt: skip
    assert found.items() >= expected.items()
    assert "Connect" not in found and "Proxy" not in found


def test_address_gets_tagged_by_its_family(agent: Target) -> None:
    """An IP address appears under lan and wan of its version, a name does not."""
    four, six, named = agent.name(), agent.name(), agent.name()
    agent.register(Name=four, Port=80, Address="10.0.0.5")
    agent.register(Name=six, Port=80, Address="2001:db8::5")
    agent.register(Name=named, Port=80, Address="host.example")
    services = agent.get("/v1/agent/services").json()
    at = {"Address": "10.0.0.5", "Port": 80}
    assert services[four]["TaggedAddresses"] == {"lan_ipv4": at, "wan_ipv4": at}
    assert set(services[six]["TaggedAddresses"]) == {"lan_ipv6", "wan_ipv6"}
    assert "TaggedAddresses" not in services[named]


def test_keys_are_read_in_any_case_and_nulls_are_nothing(agent: Target) -> None:
    """What py-consul and the command line send: lower case, snake_case, null."""
    name = agent.name()
    agent.register(
        name=name, id=f"{name}-1", port=70, tags=["a"], check=None, enable_tag_override=True,
        checks=[{"ttl": "10s", "deregister_critical_service_after": "90m"}],
        connect={"native": True}, tagged_addresses={"wan": {"address": "9.9.9.9", "port": 1}},
    )  # fmt: skip
    found = agent.get("/v1/agent/services").json()[f"{name}-1"]
    assert found["Connect"] == {"Native": True} and found["EnableTagOverride"] is True
    assert found["TaggedAddresses"]["wan"] == {"Address": "9.9.9.9", "Port": 1}
    assert list(checks(agent, f"{name}-1")) == [f"service:{name}-1"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Name": ""}, "Missing service name"),
        ({"Bogus": 1}, 'Request decode failed: json: unknown field "Bogus"'),
        ({"Port": "3"}, "Request decode failed: json: cannot unmarshal string into Go struct"
                        " field .Port of type int"),
        ({"Address": "0.0.0.0"}, "Invalid service address"),
        ({"Address": "::"}, "Invalid service address"),
        ({"Weights": {"Passing": 0}}, "Invalid Weights: Passing must be greater than 0"),
        ({"Kind": "connect-proxy", "Port": 3}, "1 error occurred:\n\t* Proxy.DestinationServiceName"
         " must be non-empty for Connect proxy services\n\n"),
        ({"Kind": "connect-proxy", "Port": 3, "Connect": {"Native": True},
          "Proxy": {"DestinationServiceName": "x"}},
         "1 error occurred:\n\t* A Proxy cannot also be Connect Native, only typical services\n\n"),
        ({"Check": {"Name": "x"}}, "Invalid check: TTL must be > 0 for TTL checks"),
        ({"Check": {"TTL": "9s", "Status": "bad"}},
         "Status for checks must 'passing', 'warning', 'critical'"),
        ({"Check": {"TTL": "bad"}}, 'Request decode failed: time: invalid duration "bad"'),
    ],
    ids=["no-name", "unknown-key", "type", "any-v4", "any-v6", "weight", "proxy", "native-proxy",
         "no-check-type", "status", "duration"],
)  # fmt: skip
def test_bad_definitions_are_refused(agent: Target, change: dict[str, Any], text: str) -> None:
    """400 with Consul's text; nothing is registered."""
    name = agent.name()
    answer = agent.put(REGISTER, {"Name": name, "Port": 1} | change)
    assert (answer.status_code, answer.text) == (400, text)
    assert name not in agent.get("/v1/agent/services").json()


def test_checks_get_their_names(agent: Target) -> None:
    """One check is service:<id>, several are numbered, an explicit ID stays."""
    one, many = agent.name(), agent.name()
    agent.register(Name=one, Check={"TTL": "10s"})
    agent.register(Name=many, ID="m", Checks=[{"TTL": "10s"}, {"CheckID": "own", "TTL": "10s"}])
    assert list(checks(agent, one)) == [f"service:{one}"]
    assert sorted(checks(agent, "m")) == ["own", "service:m:1"]
    assert checks(agent, one)[f"service:{one}"]["Name"] == f"Service '{one}' check"
    agent.put("/v1/agent/service/deregister/m")


def test_new_check_is_critical_unless_told(agent: Target) -> None:
    """TTL checks begin critical; Status sets another beginning."""
    plain, told = agent.name(), agent.name()
    agent.register(Name=plain, Check={"TTL": "10s"})
    agent.register(Name=told, Check={"TTL": "10s", "Status": "passing"})
    assert checks(agent, plain)[f"service:{plain}"]["Status"] == "critical"
    assert checks(agent, told)[f"service:{told}"]["Status"] == "passing"


def test_registering_again_keeps_status_and_output(agent: Target) -> None:
    """A check that is registered again stays as it was, whatever Status says."""
    name = agent.name()
    agent.register(Name=name, Port=1, Check={"TTL": "60s", "Status": "critical"})
    agent.put(f"/v1/agent/check/warn/service:{name}?note=hm")
    agent.register(Name=name, Port=2, Check={"TTL": "60s", "Status": "passing"})
    found = checks(agent, name)[f"service:{name}"]
    assert (found["Status"], found["Output"]) == ("warning", "hm")
    assert agent.get("/v1/agent/services").json()[name]["Port"] == 2


def test_existing_checks_stay_unless_replaced(agent: Target) -> None:
    """Registering without a check keeps it; replace-existing-checks removes it."""
    name = agent.name()
    agent.register(Name=name, Check={"TTL": "60s"})
    agent.register(Name=name)
    assert len(checks(agent, name)) == 1
    agent.put(f"{REGISTER}?replace-existing-checks=true", {"Name": name})
    assert checks(agent, name) == {}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("pass/{}?note=o", None, "passing"),
        ("warn/{}?note=o", None, "warning"),
        ("fail/{}?note=o", None, "critical"),
        ("update/{}", {"Status": "warning", "Output": "o"}, "warning"),
    ],
)
def test_ttl_check_is_set(
    agent: Target, path: str, body: dict[str, str] | None, status: str
) -> None:
    """Each way of setting a TTL check sets status and output."""
    name = agent.name()
    agent.register(Name=name, Check={"TTL": "60s"})
    answer = agent.put(f"/v1/agent/check/{path.format(f'service:{name}')}", body)
    assert (answer.status_code, answer.content) == (200, b"")
    found = checks(agent, name)[f"service:{name}"]
    assert (found["Status"], found["Output"], found["Type"]) == (status, "o", "ttl")


def test_bad_check_updates_are_refused(agent: Target) -> None:
    """An unknown status is 400, an unknown check 500."""
    name = agent.name()
    agent.register(Name=name, Check={"TTL": "60s"})
    bad = agent.put(f"/v1/agent/check/update/service:{name}", {"Status": "nope"})
    assert (bad.status_code, bad.text) == (400, "Invalid check status: 'nope'")
    unknown = agent.put("/v1/agent/check/pass/none")
    text = 'CheckID "none" does not have associated TTL'
    assert (unknown.status_code, unknown.text) == (500, text)


def test_check_can_be_registered_by_itself(agent: Target) -> None:
    """With a service or for the node; deregistered by its ID."""
    name = agent.name()
    agent.register(Name=name, Port=1)
    body = {"Name": f"extra {name}", "ID": f"extra-{name}", "ServiceID": name, "TTL": "60s"}
    assert agent.put("/v1/agent/check/register", body).status_code == 200
    assert list(checks(agent, name)) == [f"extra-{name}"]
    assert agent.put(f"/v1/agent/check/deregister/extra-{name}").status_code == 200
    assert checks(agent, name) == {}
    errors = [
        agent.put("/v1/agent/check/register", {"TTL": "10s"}),
        agent.put("/v1/agent/check/register", {"Name": "x", "TTL": "1s", "ServiceID": "none"}),
    ]
    assert [(answer.status_code, answer.text) for answer in errors] == [
        (400, "Missing check name"),
        (500, 'ServiceID "none" does not exist'),
    ]


def test_maintenance_is_a_critical_check(agent: Target) -> None:
    """Enabled it adds a critical check with the reason, disabled it takes it away."""
    name = agent.name()
    agent.register(Name=name, Port=1, Connect={"Native": True})
    path = f"/v1/agent/service/maintenance/{name}"
    assert agent.put(f"{path}?enable=true&reason=why").status_code == 200
    found = checks(agent, name)[f"_service_maintenance:{name}"]
    assert (found["Status"], found["Notes"], found["Type"]) == ("critical", "why", "maintenance")
    assert health(agent, "connect", name, "passing") == []
    assert agent.put(f"{path}?enable=false").status_code == 200
    assert len(health(agent, "connect", name, "passing")) == 1
    errors = [agent.put(path), agent.put("/v1/agent/service/maintenance/none?enable=true")]
    assert [(answer.status_code, answer.text) for answer in errors] == [
        (400, "Missing value for enable"),
        (404, 'No service registered with ID "none"'),
    ]


def test_connect_health_has_native_instances_and_sidecars(agent: Target) -> None:
    """Native ones and proxies for the service; plain instances and the proxy's name are not."""
    name = agent.name()
    agent.register(Name=name, ID=f"{name}-native", Port=1, Connect={"Native": True})
    agent.register(Name=name, ID=f"{name}-plain", Port=2)
    agent.register(
        Name=f"{name}-proxy", Port=3, Kind="connect-proxy", Proxy={"DestinationServiceName": name}
    )
    found = {item["Service"]["ID"]: item["Service"] for item in health(agent, "connect", name)}
    assert set(found) == {f"{name}-native", f"{name}-proxy"}
    native, proxy = found[f"{name}-native"], found[f"{name}-proxy"]
    assert native["Connect"] == {"Native": True} and "Kind" not in native
    assert "DestinationServiceName" not in native["Proxy"]
    assert proxy["Kind"] == "connect-proxy" and proxy["Connect"] == {}
    assert proxy["Proxy"]["DestinationServiceName"] == name
    assert health(agent, "connect", f"{name}-proxy") == []
    plain = {item["Service"]["ID"] for item in health(agent, "service", name)}
    assert plain == {f"{name}-native", f"{name}-plain"}


def test_sidecar_is_registered_and_deregistered_with_its_service(agent: Target) -> None:
    """SidecarService {} makes <id>-sidecar-proxy with a port and two checks."""
    name = agent.name()
    agent.register(Name=name, Port=1, Connect={"SidecarService": {}})
    sidecar = agent.get("/v1/agent/services").json()[f"{name}-sidecar-proxy"]
    assert sidecar["Kind"] == "connect-proxy" and sidecar["Port"] in range(21000, 21256)
    assert sidecar["Proxy"]["DestinationServiceID"] == name
    kinds = {check["Type"] for check in checks(agent, f"{name}-sidecar-proxy").values()}
    assert kinds == {"tcp", "alias"}
    agent.put(f"/v1/agent/service/deregister/{name}")
    left = agent.get("/v1/agent/services").json()
    assert name not in left and f"{name}-sidecar-proxy" not in left


@pytest.mark.parametrize(
    ("query", "count"),
    [("", 2), ("passing", 1), ("passing=", 1), ("passing=1", 1), ("passing=true", 1),
     ("passing=0", 2), ("passing=false", 2), ("tag=t1", 2), ("passing=1&connect=true&stale=", 1)],
)  # fmt: skip
def test_passing_filters(agent: Target, query: str, count: int) -> None:
    """passing wants every check passing; its value may turn it off; connect ignores tags."""
    name = agent.name()
    agent.register(Name=name, ID=f"{name}-1", Port=1, Tags=["t1"], Connect={"Native": True})
    agent.register(
        Name=name, ID=f"{name}-2", Port=2, Connect={"Native": True},
        Checks=[{"TTL": "60s", "Status": "passing"}, {"TTL": "60s", "Status": "warning"}],
    )  # fmt: skip
    assert len(health(agent, "connect", name, query)) == count


def test_tags_filter_plain_instances(agent: Target) -> None:
    """Each tag given must be there."""
    name = agent.name()
    agent.register(Name=name, ID=f"{name}-1", Tags=["t1", "t2"])
    agent.register(Name=name, ID=f"{name}-2", Tags=["t1"])
    counts = [len(health(agent, "service", name, q)) for q in ("tag=t1", "tag=t1&tag=t2", "tag=x")]
    assert counts == [2, 1, 0]
    assert len(agent.get(f"/v1/catalog/service/{name}?tag=t2").json()) == 1


def test_strange_passing_is_refused(agent: Target) -> None:
    """400, by name."""
    answer = agent.get("/v1/health/connect/web?passing=x")
    assert (answer.status_code, answer.text) == (400, "Invalid value for ?passing")


def test_health_entry_has_node_service_and_checks(agent: Target) -> None:
    """The node's own check stands first, Meta may be null, a port of zero is left out (1.9)."""
    name = agent.name()
    agent.register(Name=name, Connect={"Native": True})
    (item,) = health(agent, "connect", name)
    assert item["Node"]["Datacenter"] == "dc1"
    assert item["Checks"][0]["CheckID"] == "serfHealth"
    assert item["Service"].get("Port", 0) == 0 and item["Service"]["Meta"] is None
    assert "Port" not in item["Service"] or not agent.has_l7
    assert item["Service"]["Tags"] == []


def test_catalog_follows(agent: Target) -> None:
    """services, service and connect know the instance, the flat form has a port of zero."""
    name = agent.name()
    agent.register(Name=name, Tags=["b", "a"], Connect={"Native": True})
    assert sorted(agent.get("/v1/catalog/services").json()[name]) == ["a", "b"]
    for kind in ("service", "connect"):
        (item,) = agent.get(f"/v1/catalog/{kind}/{name}").json()
        assert (item["ServiceName"], item["ServicePort"]) == (name, 0)
        assert item["ServiceConnect"] == {"Native": True}


def test_consul_itself_is_a_service(agent: Target) -> None:
    """The catalog has the service consul, the agent's own list has not."""
    assert "consul" in agent.get("/v1/catalog/services").json()
    assert len(health(agent, "service", "consul", "passing")) == 1
    assert len(agent.get("/v1/catalog/service/consul").json()) == 1
    assert "consul" not in agent.get("/v1/agent/services").json()


@pytest.mark.parametrize(
    ("status", "code"), [("passing", 200), ("warning", 429), ("critical", 503)]
)
def test_health_of_a_local_service_is_a_status_code(agent: Target, status: str, code: int) -> None:
    """What a load balancer asks: by ID and by name, as JSON and as text."""
    name = agent.name()
    agent.register(Name=name, Check={"TTL": "60s", "Status": status})
    by_id = agent.get(f"/v1/agent/health/service/id/{name}")
    assert (by_id.status_code, by_id.json()["AggregatedStatus"]) == (code, status)
    assert by_id.headers["X-Consul-Reason"] == status
    by_name = agent.get(f"/v1/agent/health/service/name/{name}?format=text")
    assert (by_name.status_code, by_name.text) == (code, status)


def test_health_of_an_unknown_local_service_is_404(agent: Target) -> None:
    """404, critical, with the reason in a header."""
    answer = agent.get("/v1/agent/health/service/id/none")
    assert (answer.status_code, answer.json()["AggregatedStatus"]) == (404, "critical")
    assert answer.headers["X-Consul-Reason"] == "ServiceId none not found"
    assert agent.get("/v1/agent/health/service/name/none").json() == []


def test_deregistering_what_is_not_there_is_no_error(agent: Target) -> None:
    """200, as up to 1.10; a service that is there goes with its checks."""
    name = agent.name()
    agent.register(Name=name, Check={"TTL": "60s"})
    for _ in range(2):
        assert agent.put(f"/v1/agent/service/deregister/{name}").status_code == 200
    assert checks(agent, name) == {}
    answer = agent.get(f"/v1/agent/service/{name}")
    assert (answer.status_code, answer.text) == (404, f"unknown service ID: {name}")


def test_prepared_query_finds_instances(agent: Target) -> None:
    """By ID and by name; connect=true gives connect instances; critical ones are left out."""
    name = agent.name()
    body = {"Name": f"{name}-query", "Service": {"Service": name}}
    identity = agent.post("/v1/query", body).json()["ID"]
    assert agent.get(f"/v1/query/{identity}/execute").json()["Nodes"] == []
    agent.register(Name=name, ID=f"{name}-1", Port=1, Connect={"Native": True})
    agent.register(Name=name, ID=f"{name}-2", Port=2)
    agent.register(Name=name, ID=f"{name}-3", Port=3, Check={"TTL": "60s"})
    every = agent.get(f"/v1/query/{name}-query/execute").json()["Nodes"]
    native = agent.get(f"/v1/query/{name}-query/execute?connect=true&stale=").json()["Nodes"]
    assert {item["Service"]["ID"] for item in every} == {f"{name}-1", f"{name}-2"}
    assert {item["Service"]["ID"] for item in native} == {f"{name}-1"}
    unknown = agent.get("/v1/query/none/execute")
    assert (unknown.status_code, unknown.text) == (404, "Query not found")
