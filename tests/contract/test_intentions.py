"""Intentions over HTTP: the calls every version has, and those since 1.9 on the dev agent."""

from __future__ import annotations

from typing import Any

import pytest

from .target import Target, index_of

BASE = "/v1/connect/intentions"


def match(agent: Target, by: str, name: str) -> Any:
    """The list that match answers for *name*."""
    return agent.get(f"{BASE}/match?by={by}&name={name}").json()[name]


def test_no_match_is_null_and_not_an_empty_list(agent: Target) -> None:
    """A name without intentions has null."""
    name = agent.name()
    assert agent.get(f"{BASE}/match?by=destination&name={name}").json() == {name: None}


def test_match_answers_every_name_asked_for(agent: Target) -> None:
    """Several names make several keys, as they were given."""
    one, two = agent.name("Db"), agent.name()
    answer = agent.get(f"{BASE}/match?by=destination&name={one}&name={two}")
    assert set(answer.json()) == {one, two}


def test_match_sorts_by_precedence(agent: Target) -> None:
    """9, 8, 6, 5: the destination's exactness counts before the source's."""
    source, target = agent.name(), agent.name()
    pairs = [("*", "*"), (source, "*"), ("*", target), (source, target)]
    made = [agent.deny(*pair) for pair in pairs]
    found = match(agent, "destination", target)
    for identity in made:
        agent.forget(identity)
    assert [item["Precedence"] for item in found] == [9, 8, 6, 5]
    assert [(item["SourceName"], item["DestinationName"]) for item in found] == pairs[::-1]


def test_match_by_source_finds_exact_and_wildcard(agent: Target) -> None:
    """by=source gives what names the source, and what names any."""
    source, target = agent.name(), agent.name()
    made = [agent.deny(source, target), agent.deny("*", target), agent.deny(agent.name(), target)]
    found = match(agent, "source", source)
    for identity in made:
        agent.forget(identity)
    assert [(item["SourceName"], item["DestinationName"]) for item in found] == [
        (source, target),
        ("*", target),
    ]


def test_an_intention_has_these_fields(agent: Target) -> None:
    """The flat form, with the fields of a legacy intention."""
    source, target = agent.name(), agent.name()
    body = {"SourceName": source, "DestinationName": target, "Action": "deny",
            "Description": "why", "Meta": {"k": "v"}}  # fmt: skip
    identity = agent.post(BASE, body).json()["ID"]
    found = agent.get(f"{BASE}/{identity}").json()
    agent.forget(identity)
    expected = {
        "ID": identity, "Description": "why", "SourceNS": "default", "SourceName": source,
        "DestinationNS": "default", "DestinationName": target, "SourceType": "consul",
        "Action": "deny", "Meta": {"k": "v"}, "Precedence": 9,
    }  # fmt: skip
    assert found.items() >= expected.items()
    rest = {"CreatedAt", "UpdatedAt", "Hash", "CreateIndex", "ModifyIndex"}
    assert rest <= found.keys()
    assert found.keys() - rest - expected.keys() <= {"DefaultAddr", "DefaultPort"}


def test_list_shows_what_was_created(agent: Target) -> None:
    """Created, changed, deleted: the list follows, and its index grows each time."""
    source, target = agent.name(), agent.name()
    seen = [agent.index(BASE)]
    identity = agent.deny(source, target)
    seen.append(agent.index(BASE))
    changed = agent.put(
        f"{BASE}/{identity}",
        {"SourceName": source, "DestinationName": target, "Action": "allow"},
    )
    assert changed.json() == {"ID": identity}
    answer = agent.get(BASE)
    seen.append(index_of(answer))
    actions = [item["Action"] for item in answer.json() if item.get("ID") == identity]
    assert agent.delete(f"{BASE}/{identity}").json() is True
    seen.append(agent.index(BASE))
    assert actions == ["allow"]
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"Action": "maybe"}, "Action must be set to 'allow' or 'deny'"),
        ({"SourceName": "a*"}, "wildcard character '*' cannot be used with partial values"),
        ({"SourceName": ""}, "SourceName must be set"),
        ({"DestinationName": ""}, "DestinationName must be set"),
        ({"SourceType": "other"}, "must be set to 'consul'"),
    ],
    ids=["action", "partial-wildcard", "no-source", "no-destination", "type"],
)
def test_bad_intentions_are_refused(agent: Target, body: dict[str, str], text: str) -> None:
    """500 with the rule that is broken; nothing is stored."""
    before = agent.get(BASE).json()
    whole = {"SourceName": agent.name(), "DestinationName": agent.name(), "Action": "deny"}
    answer = agent.post(BASE, whole | body)
    assert answer.status_code == 500
    assert text in answer.text
    assert agent.get(BASE).json() == before


def test_duplicate_is_refused(agent: Target) -> None:
    """One intention per pair."""
    source, target = agent.name(), agent.name()
    identity = agent.deny(source, target)
    body = {"SourceName": source, "DestinationName": target, "Action": "allow"}
    answer = agent.post(BASE, body)
    agent.forget(identity)
    assert answer.status_code == 500
    assert answer.text.startswith("duplicate intention found: ")


def test_unknown_ids(agent: Target) -> None:
    """No UUID is 400, an unknown one 404 to read and 500 to write."""
    unknown = "11111111-2222-3333-4444-555555555555"
    body = {"SourceName": "a", "DestinationName": "b", "Action": "allow"}
    answers = [
        agent.get(f"{BASE}/nope"),
        agent.get(f"{BASE}/{unknown}"),
        agent.put(f"{BASE}/{unknown}", body),
        agent.delete(f"{BASE}/{unknown}"),
    ]
    assert [(answer.status_code, answer.text) for answer in answers] == [
        (400, "Bad request: failed intention lookup: index error: UUID must be 36 characters"),
        (404, "Intention not found"),
        (500, f"Cannot modify non-existent intention: '{unknown}'"),
        (500, f"Cannot delete non-existent intention: '{unknown}'"),
    ]


def test_check_follows_the_first_match(agent: Target) -> None:
    """check is the L4 answer: intention first, else the default."""
    source, target = agent.name(), agent.name()
    path = f"{BASE}/check?source={source}&destination={target}"
    before = agent.get(path).json()
    identity = agent.deny(source, target)
    denied = agent.get(f"{path}&source-type=consul").json()
    agent.forget(identity)
    assert (before, denied, agent.get(path).json()) == (
        {"Allowed": True}, {"Allowed": False}, {"Allowed": True},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("match?name=web", "required query parameter 'by' not set"),
        ("match?by=both&name=web", "'by' parameter must be one of 'source' or 'destination'"),
        ("match?by=source", "required query parameter 'name' not set"),
        ("check?source=a", "required query parameter 'destination' not set"),
        ("check?destination=a", "required query parameter 'source' not set"),
    ],
)
def test_missing_parameters_are_500(agent: Target, path: str, text: str) -> None:
    """Mistakes of the caller, but 500 all the same."""
    answer = agent.get(f"{BASE}/{path}")
    assert (answer.status_code, answer.text) == (500, text)


# Since 1.9, asserted of the dev agent as 1.10.1 answers


@pytest.fixture
def http_service(dev: Target) -> str:
    """A service whose protocol is http."""
    name = dev.name()
    entry = {"Kind": "service-defaults", "Name": name, "Protocol": "http"}
    assert dev.put("/v1/config", entry).json() is True
    return name


def exact(source: str, target: str) -> str:
    """Path of the exact form."""
    return f"{BASE}/exact?source={source}&destination={target}"


def test_exact_form_writes_reads_and_deletes(dev: Target) -> None:
    """PUT is true, GET the intention, DELETE true even twice, then 404."""
    source, target = dev.name(), dev.name()
    path = exact(source, target)
    assert dev.put(path, {"Action": "deny", "SourceType": "consul"}).json() is True
    found = dev.get(path).json()
    assert found == {
        "SourceNS": "default", "SourceName": source, "DestinationNS": "default",
        "DestinationName": target, "SourceType": "consul", "Action": "deny", "Precedence": 9,
        "CreateIndex": found["CreateIndex"], "ModifyIndex": found["ModifyIndex"],
    }  # fmt: skip
    assert [dev.delete(path).json() for _ in range(2)] == [True, True]
    answer = dev.get(path)
    assert (answer.status_code, answer.text) == (404, "Intention not found")


def test_entry_goes_with_its_last_source(dev: Target) -> None:
    """The config entry behind the exact form lives as long as it has sources."""
    target = dev.name()
    entry = f"/v1/config/service-intentions/{target}"
    for source in ("a", "b"):
        dev.put(exact(source, target), {"Action": "allow"})
    assert [source["Name"] for source in dev.get(entry).json()["Sources"]] == ["a", "b"]
    dev.delete(exact("a", target))
    assert dev.get(entry).status_code == 200
    dev.delete(exact("b", target))
    assert dev.get(entry).status_code == 404


def test_exact_writes_end_the_legacy_id(dev: Target) -> None:
    """Once edited by name, a legacy intention has no ID any more."""
    source, target = dev.name(), dev.name()
    identity = dev.deny(source, target)
    dev.put(exact(source, target), {"Action": "allow"})
    assert "ID" not in dev.get(exact(source, target)).json()
    assert dev.get(f"{BASE}/{identity}").status_code == 404
    body = {"SourceName": "z", "DestinationName": target, "Action": "allow"}
    assert dev.post(BASE, body).status_code == 500
    dev.delete(exact(source, target))


def test_permissions_need_an_http_service(dev: Target, http_service: str) -> None:
    """On tcp they are refused by name of the protocol; on http they are kept as given."""
    permissions = [{"Action": "allow", "HTTP": {"PathPrefix": "/", "Methods": ["get"]}}]
    tcp = dev.name()
    answer = dev.put(exact("a", tcp), {"Permissions": permissions})
    assert (answer.status_code, answer.text) == (
        500,
        f'service "{tcp}" has protocol "tcp", which is incompatible with L7 intentions permissions',
    )
    assert dev.put(exact("a", http_service), {"Permissions": permissions}).json() is True
    found = dev.get(exact("a", http_service)).json()
    assert "Action" not in found
    assert found["Permissions"][0]["HTTP"]["Methods"] == ["GET"]


def test_l7_intention_counts_as_deny_on_a_connection(dev: Target, http_service: str) -> None:
    """check and authorize deny whenever there are permissions."""
    permissions = [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]
    dev.put(exact("a", http_service), {"Permissions": permissions})
    check = f"{BASE}/check?source=a&destination={http_service}"
    assert dev.get(check).json() == {"Allowed": False}
    body = {"Target": http_service, "ClientCertURI": "spiffe://x/ns/default/dc/dc1/svc/a"}
    assert dev.post("/v1/agent/connect/authorize", body).json() == {
        "Authorized": False,
        "Reason": f"Matched L7 intention: default/a => default/{http_service}"
        " (Precedence: 9, Permissions: 1)",
    }


def test_protocol_cannot_go_while_permissions_need_it(dev: Target, http_service: str) -> None:
    """Deleting the service-defaults that made it http is refused."""
    permissions = [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]
    dev.put(exact("a", http_service), {"Permissions": permissions})
    answer = dev.delete(f"/v1/config/service-defaults/{http_service}")
    assert answer.status_code == 500
    assert 'has protocol "tcp"' in answer.text


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("allow", "Matched L4 intention: default/{} => default/{} (Precedence: 9, Action: ALLOW)"),
        ("deny", "Matched L4 intention: default/{} => default/{} (Precedence: 9, Action: DENY)"),
    ],
)
def test_authorize_gives_the_reason(dev: Target, action: str, reason: str) -> None:
    """The reason names the intention that matched."""
    source, target = dev.name(), dev.name()
    dev.put(exact(source, target), {"Action": action})
    body = {"Target": target, "ClientCertURI": f"spiffe://x/ns/default/dc/dc1/svc/{source}"}
    answer = dev.post("/v1/agent/connect/authorize", body).json()
    assert answer["Reason"] == reason.format(source, target)


def test_destination_is_found_in_any_case(dev: Target) -> None:
    """Looking up by destination ignores case, the source's case counts."""
    target = dev.name("Db")
    dev.put(exact("Api", target), {"Action": "deny"})
    found = dev.get(f"{BASE}/match?by=destination&name={target.lower()}").json()[target.lower()]
    assert [item["DestinationName"] for item in found] == [target]
    check = f"{BASE}/check?source=api&destination={target}"
    assert dev.get(check).json() == {"Allowed": True}


def test_match_has_an_index_of_its_own(dev: Target) -> None:
    """It grows with intentions of that destination, and not with those of others."""
    target = dev.name()
    path = f"{BASE}/match?by=destination&name={target}"
    before = dev.index(path)
    dev.put(exact("a", dev.name()), {"Action": "deny"})
    assert dev.index(path) == before
    dev.put(exact("a", target), {"Action": "deny"})
    assert dev.index(path) > before


# The corners


def test_default_namespace_may_be_written_out(dev: Target) -> None:
    """``default/web`` is ``web``, keyed as it was asked for; another namespace is Enterprise."""
    target = dev.name()
    dev.put(exact("a", f"default/{target}"), {"Action": "deny"})
    path = f"{BASE}/match?by=destination&name=default/{target}"
    assert [item["DestinationName"] for item in dev.get(path).json()[f"default/{target}"]] == [
        target
    ]
    answer = dev.get(f"{BASE}/match?by=destination&name=other/{target}")
    assert answer.status_code == 400 and "Enterprise" in answer.text


@pytest.mark.parametrize(
    "path",
    [
        f"{BASE}?filter=x==y",
        "/v1/health/connect/web?filter=x==y",
        "/v1/catalog/service/web?filter=x",
    ],
)
def test_filters_are_refused_and_not_ignored(dev: Target, path: str) -> None:
    """The dev agent reads no filter expressions: it says so instead of answering too much."""
    answer = dev.get(path)
    assert (answer.status_code, answer.text) == (400, "the dev agent reads no filter expressions")


def test_meta_belongs_to_the_entry(dev: Target) -> None:
    """The exact form takes Meta only when it repeats the entry's."""
    target = dev.name()
    sources = [{"Name": "a", "Action": "allow"}]
    entry = {"Kind": "service-intentions", "Name": target, "Meta": {"k": "v"}, "Sources": sources}
    assert dev.put("/v1/config", entry).json() is True
    same = dev.put(exact("b", target), {"Action": "deny", "Meta": {"k": "v"}})
    other = dev.put(exact("b", target), {"Action": "deny", "Meta": {"k": "w"}})
    assert (same.status_code, other.status_code) == (200, 500)
    assert dev.get(exact("b", target)).json()["Meta"] == {"k": "v"}


def test_legacy_form_has_no_permissions_and_no_second_thoughts(dev: Target) -> None:
    """No permissions, no chosen ID, and an update keeps source and destination."""
    source, target = dev.name(), dev.name()
    body = {"SourceName": source, "DestinationName": target, "Action": "deny"}
    permissions = [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]
    assert dev.post(BASE, body | {"Permissions": permissions}).status_code == 500
    assert dev.post(BASE, body | {"ID": "x"}).status_code == 400
    identity = dev.deny(source, target)
    moved = dev.put(f"{BASE}/{identity}", body | {"SourceName": "z"})
    assert moved.status_code == 500 and "Cannot modify the source" in moved.text
    assert dev.get(f"{BASE}/{identity}").json()["SourceName"] == source
    dev.forget(identity)


def test_check_knows_one_type_of_source(dev: Target) -> None:
    """consul, as everywhere."""
    answer = dev.get(f"{BASE}/check?source=a&destination=b&source-type=other")
    assert (answer.status_code, answer.text) == (500, "'source-type' must be 'consul'")


def test_legacy_ids_of_one_destination_live_and_die_alone(agent: Target) -> None:
    """Deleting one intention by its ID leaves the other of the same destination."""
    target = agent.name()
    first, second = agent.deny("a", target), agent.deny("b", target)
    agent.forget(first)
    assert [item["ID"] for item in match(agent, "destination", target)] == [second]
    agent.forget(second)
    assert match(agent, "destination", target) is None
