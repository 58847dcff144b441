"""Config entries and discovery chains."""

from __future__ import annotations

from typing import Any

import pytest

from .target import Target, index_of


def defaults(name: str, **fields: Any) -> dict[str, Any]:
    """A service-defaults entry."""
    return {"Kind": "service-defaults", "Name": name, **fields}


def test_entry_is_written_read_listed_and_deleted(agent: Target) -> None:
    """PUT true, GET the entry with indexes, list contains it, DELETE {} even twice."""
    name = agent.name()
    path = f"/v1/config/service-defaults/{name}"
    assert agent.put("/v1/config", defaults(name, Protocol="http")).json() is True
    answer = agent.get(path)
    expected = defaults(name, Protocol="http", MeshGateway={}, Expose={})
    assert answer.json().items() >= expected.items()
    assert index_of(answer) >= answer.json()["ModifyIndex"] >= answer.json()["CreateIndex"]
    listed = agent.get("/v1/config/service-defaults").json()
    assert name in [entry["Name"] for entry in listed]
    for _ in range(2):
        gone = agent.delete(path)
        assert (gone.status_code, gone.json()) == (200, {})
    missing = agent.get(path)
    assert missing.text == f'Config entry not found for "service-defaults" / "{name}"'
    assert missing.status_code == 404 and index_of(missing) >= 1


def test_keys_may_be_snake_case(agent: Target) -> None:
    """Reads are in Pascal case whatever was written."""
    name = agent.name()
    body = {"kind": "service-defaults", "name": name, "protocol": "http", "external_sni": "x"}
    agent.put("/v1/config", body)
    found = agent.get(f"/v1/config/service-defaults/{name}").json()
    assert (found["Protocol"], found["ExternalSNI"]) == ("http", "x")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"Name": "x"}, "Payload does not contain a kind/Kind key at the top level"),
        ({"Kind": "nope", "Name": "x"}, "invalid config entry kind: nope"),
        ({"Kind": "service-defaults", "Name": "x", "Bogus": 1},
         '1 error occurred:\n\t* invalid config key "Bogus"\n\n'),
    ],
    ids=["no-kind", "unknown-kind", "unknown-key"],
)  # fmt: skip
def test_unreadable_entries_are_400(agent: Target, body: dict[str, Any], text: str) -> None:
    """What cannot be decoded is named."""
    answer = agent.put("/v1/config", body)
    assert answer.status_code == 400
    assert answer.text == f"Bad request: Request decoding failed: {text}"


def test_unknown_kind_cannot_be_read(agent: Target) -> None:
    """500, as for most mistakes."""
    answer = agent.get("/v1/config/nope")
    assert (answer.status_code, answer.text) == (500, "invalid config entry kind: nope")


def test_compare_and_set(agent: Target) -> None:
    """cas=0 only creates, another value only changes that version, nonsense is 500."""
    name = agent.name()
    path = f"/v1/config/service-defaults/{name}"

    def put(cas: object, protocol: str) -> object:
        return agent.put(f"/v1/config?cas={cas}", defaults(name, Protocol=protocol)).json()

    assert (put(0, "http"), put(0, "grpc")) == (True, False)
    version = agent.get(path).json()["ModifyIndex"]
    assert (put(version + 7, "grpc"), put(version, "grpc")) == (False, True)
    assert agent.get(path).json()["Protocol"] == "grpc"
    bad = agent.put("/v1/config?cas=x", defaults(name))
    assert (bad.status_code, bad.text) == (500, 'strconv.ParseUint: parsing "x": invalid syntax')


def test_proxy_defaults_has_one_name(agent: Target) -> None:
    """Whatever name is given, it is global."""
    body = {"Kind": "proxy-defaults", "Name": "other", "Config": {"local_connect_timeout_ms": 1}}
    assert agent.put("/v1/config", body).json() is True
    assert agent.get("/v1/config/proxy-defaults/global").json()["Name"] == "global"
    agent.delete("/v1/config/proxy-defaults/global")


def test_splitter_needs_http_and_known_subsets(agent: Target) -> None:
    """A splitter on a tcp service, or for a subset that no resolver has, is refused."""
    name = agent.name()
    splitter = {"Kind": "service-splitter", "Name": name, "Splits": [{"Weight": 100}]}
    answer = agent.put("/v1/config", splitter)
    assert (answer.status_code, answer.text) == (
        500,
        f'discovery chain "{name}" uses a protocol "tcp" that does not permit advanced routing'
        " or splitting behavior",
    )
    agent.put("/v1/config", defaults(name, Protocol="http"))
    subset = {**splitter, "Splits": [{"Weight": 100, "ServiceSubset": "v1"}]}
    answer = agent.put("/v1/config", subset)
    text = f'service "{name}" does not have a subset named "v1"'
    assert (answer.status_code, answer.text) == (500, text)
    assert agent.put("/v1/config", splitter).json() is True
    stuck = agent.put("/v1/config", defaults(name))
    assert stuck.status_code == 500 and "advanced routing" in stuck.text
    agent.delete(f"/v1/config/service-splitter/{name}")


def test_unknown_service_has_a_default_chain(agent: Target) -> None:
    """Never 404: one resolver, one target, with its SNI."""
    name = agent.name()
    chain = agent.get(f"/v1/discovery-chain/{name}").json()["Chain"]
    target = f"{name}.default.dc1"
    assert chain["StartNode"] == f"resolver:{target}"
    assert chain["Nodes"][f"resolver:{target}"]["Resolver"]["Default"] is True
    domain = agent.get("/v1/agent/connect/ca/roots").json()["TrustDomain"]
    assert chain["Targets"][target]["SNI"] == f"{target}.internal.{domain}"


def test_chain_knows_the_protocol(agent: Target) -> None:
    """The protocol is that of service-defaults, tcp without."""
    name = agent.name()
    path = f"/v1/discovery-chain/{name}"
    assert agent.get(path).json()["Chain"]["Protocol"] == "tcp"
    agent.put("/v1/config", defaults(name, Protocol="http"))
    assert agent.get(path).json()["Chain"]["Protocol"] == "http"
