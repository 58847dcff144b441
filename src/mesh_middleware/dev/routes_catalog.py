"""
Routes of the catalog: who is there, who is healthy, config entries, queries, discovery chains.

Source: Consul HTTP API (reference 4.5, 6.4, 6.5, 7).
"""

from __future__ import annotations

import re
import uuid
from datetime import datetime
from typing import Any

from . import schemas
from .chains import compile_chain
from .decode import decode_body
from .definitions import Service
from .entries import check_kind, read_entry
from .http import Answer, Refusal
from .routing import Call, Table
from .views import catalog_service, consul_service, health_entry

_SERVICE_KINDS = re.compile(r"service-(defaults|resolver|router|splitter)")
_FILTERED = (("X-Consul-Results-Filtered-By-ACLs", "true"),)


def add_routes(table: Table) -> None:
    """Register the routes of this module."""

    def due(call: Call) -> datetime | None:
        return call.state.service_due()

    table.add("GET", "/v1/health/connect/{}", topics=_connect_topics, due=due)(health_connect)
    table.add("GET", "/v1/health/service/{}", topics=_service_topics, due=due)(health_service)
    table.add("GET", "/v1/catalog/connect/{}", topics=_connect_topics)(catalog_connect)
    table.add("GET", "/v1/catalog/service/{}", topics=_service_topics)(catalog_one)
    table.add("GET", "/v1/catalog/services", topics=lambda call: ("services",))(catalog_services)
    table.add("GET", "/v1/catalog/nodes", topics=lambda call: ("nodes",))(catalog_nodes)
    table.add("GET", "/v1/catalog/datacenters")(datacenters)
    table.add("PUT", "/v1/config")(put_config)
    table.add("GET", "/v1/config/{}/{}", topics=_entry_topic)(get_config)
    table.add("DELETE", "/v1/config/{}/{}")(delete_config)
    table.add("GET", "/v1/config/{}", topics=_kind_topic)(list_config)
    table.add("POST", "/v1/query")(create_query)
    table.add("GET", "/v1/query")(lambda call: Answer(list(call.state.queries.values()), index=1))
    table.add("GET", "/v1/query/{}/execute")(execute_query)
    table.add("GET", "/v1/discovery-chain/{}", topics=_chain_topics)(discovery_chain)


def _check_datacenter(call: Call) -> None:
    wanted = call.request.first("dc")
    if wanted and wanted != call.state.options.datacenter:
        raise Refusal(500, "No path to datacenter")


def _no_filter(call: Call) -> None:
    if call.request.first("filter"):
        raise Refusal(400, "the dev agent reads no filter expressions")


# Health and catalog


def _connect_topics(call: Call) -> tuple[str, ...]:
    return (f"connect/{call.args[0]}",)


def _service_topics(call: Call) -> tuple[str, ...]:
    return (f"service/{call.args[0]}",)


def _named(call: Call, name: str) -> list[Service]:
    if name == "consul":
        return [consul_service(call.state.node)]
    return call.state.services.named(name)


def _tagged(call: Call, found: list[Service]) -> list[Service]:
    tags = set(call.request.query.get("tag", []))
    return [one for one in found if tags <= set(one.tags)]


def _passing_only(call: Call) -> bool:
    if not call.request.flag("passing"):
        return False
    value = call.request.first("passing")
    if value.lower() in ("", "1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise Refusal(400, "Invalid value for ?passing")


def health_entries(
    call: Call, found: list[Service], *, passing: bool
) -> tuple[list[dict[str, Any]], bool]:
    """Health entries of *found* that the caller may read, and whether any was held back."""
    state, entries, hidden = call.state, [], False
    node_checks = state.services.node_checks()
    for one in found:
        may_read = call.rights.may("service:read", one.name)
        if not may_read or not call.rights.may("node:read", state.node.name):
            hidden = True
            continue
        checks = state.services.checks_of(one.id)
        if passing and any(check.status != "passing" for check in (*checks, *node_checks)):
            continue
        entries.append(health_entry(one, checks, node_checks, state.node))
    return entries, hidden


def _health(call: Call, found: list[Service], topics: tuple[str, ...]) -> Answer:
    _check_datacenter(call)
    _no_filter(call)
    passing = _passing_only(call)
    entries, hidden = health_entries(call, found, passing=passing)
    headers = _FILTERED if hidden and call.rights.secret else ()
    index = call.state.index.of(*topics)
    return Answer(entries, index=index, headers=headers, consistent=True)


def health_connect(call: Call) -> Answer:
    """``GET /v1/health/connect/:service``; tags do not filter here, nor in the catalog's."""
    return _health(call, call.state.services.connecting(call.args[0]), _connect_topics(call))


def health_service(call: Call) -> Answer:
    """``GET /v1/health/service/:service``."""
    found = _tagged(call, _named(call, call.args[0]))
    return _health(call, found, _service_topics(call))


def _catalog(call: Call, found: list[Service], topics: tuple[str, ...]) -> Answer:
    _check_datacenter(call)
    _no_filter(call)
    may_node = call.rights.may("node:read", call.state.node.name)
    views = [
        catalog_service(one, call.state.node)
        for one in found
        if may_node and call.rights.may("service:read", one.name)
    ]
    return Answer(views, index=call.state.index.of(*topics), consistent=True)


def catalog_connect(call: Call) -> Answer:
    """``GET /v1/catalog/connect/:service``."""
    return _catalog(call, call.state.services.connecting(call.args[0]), _connect_topics(call))


def catalog_one(call: Call) -> Answer:
    """``GET /v1/catalog/service/:service``."""
    found = _tagged(call, _named(call, call.args[0]))
    return _catalog(call, found, _service_topics(call))


def catalog_services(call: Call) -> Answer:
    """``GET /v1/catalog/services``: names and their tags."""
    tags: dict[str, set[str]] = {"consul": set()}
    for one in call.state.services.services.values():
        if call.rights.may("service:read", one.name):
            tags.setdefault(one.name, set()).update(one.tags)
    body = {name: sorted(tags[name]) for name in sorted(tags)}
    return Answer(body, index=call.state.index.of("services"), consistent=True)


def catalog_nodes(call: Call) -> Answer:
    """``GET /v1/catalog/nodes``."""
    readable = call.rights.may("node:read", call.state.node.name)
    views = [call.state.node.full()] if readable else []
    return Answer(views, index=call.state.index.of("nodes"), consistent=True)


def datacenters(call: Call) -> Answer:
    """``GET /v1/catalog/datacenters``."""
    return Answer([call.state.options.datacenter])


# Config entries


def _entry_topic(call: Call) -> tuple[str, ...]:
    return (f"config/{call.args[0]}/{call.args[1].lower()}",)


def _kind_topic(call: Call) -> tuple[str, ...]:
    return (f"config/{call.args[0]}",)


def _require_config(call: Call, kind: str, name: str, level: str) -> None:
    if kind == "service-intentions":
        call.rights.require(f"intentions:{level}", name)
    elif _SERVICE_KINDS.fullmatch(kind):
        call.rights.require(f"service:{level}", name)
    elif level == "write":
        call.rights.require("mesh:write")


def _cas(call: Call) -> int | None:
    text = call.request.first("cas")
    if not text:
        return None
    if not text.isdigit():
        raise Refusal(500, f'strconv.ParseUint: parsing "{text}": invalid syntax')
    return int(text)


def put_config(call: Call) -> Answer:
    """``PUT /v1/config``."""
    _check_datacenter(call)
    entry = read_entry(call.request.json())
    _require_config(call, entry["Kind"], entry["Name"], "write")
    return Answer(call.state.put_entry(entry, cas=_cas(call)))


def get_config(call: Call) -> Answer:
    """``GET /v1/config/:kind/:name``: 404 carries an index too."""
    kind, name = call.args
    check_kind(kind)
    _require_config(call, kind, name, "read")
    index = call.state.index.of(*_entry_topic(call))
    entry = call.state.entries.get(kind, name)
    if entry is None:
        return Answer(f'Config entry not found for "{kind}" / "{name}"', 404, index=index)
    return Answer(entry, index=index)


def list_config(call: Call) -> Answer:
    """``GET /v1/config/:kind``."""
    kind = call.args[0]
    check_kind(kind)
    index = call.state.index.of(*_kind_topic(call))
    return Answer(call.state.entries.of_kind(kind), index=index)


def delete_config(call: Call) -> Answer:
    """``DELETE /v1/config/:kind/:name``."""
    kind, name = call.args
    check_kind(kind)
    _require_config(call, kind, name, "write")
    cas = _cas(call)
    done = call.state.delete_entry(kind, name, cas=cas)
    return Answer({} if cas is None else done)


# Prepared queries


def create_query(call: Call) -> Answer:
    """``POST /v1/query``."""
    body = decode_body(call.request.json(), schemas.QUERY)
    if not (body.get("Service") or {}).get("Service"):
        raise Refusal(500, "Must provide a Service name to query")
    state, identity = call.state, str(uuid.uuid4())
    with state.lock:
        if body.get("Name") and _find_query(call, body["Name"]):
            raise Refusal(500, f"Name '{body['Name']}' aliases an existing query name")
        state.queries[identity] = {**body, "ID": identity}
        state.dirty = True
    return Answer({"ID": identity})


def _find_query(call: Call, name: str) -> dict[str, Any] | None:
    queries = call.state.queries
    if name in queries:
        return queries[name]
    return next((query for query in queries.values() if query.get("Name") == name), None)


def execute_query(call: Call) -> Answer:
    """``GET /v1/query/:name/execute``: never blocks."""
    query = _find_query(call, call.args[0])
    if query is None:
        raise Refusal(404, "Query not found")
    wanted, services = query["Service"], call.state.services
    name = wanted["Service"]
    connect = wanted.get("Connect") or call.request.first("connect") in ("true", "1")
    found = services.connecting(name) if connect else services.named(name)
    tags = set(wanted.get("Tags", ()))
    found = [one for one in found if tags <= set(one.tags)]
    entries, _ = health_entries(call, found, passing=wanted.get("OnlyPassing", False))
    # Without OnlyPassing a query still leaves out what is critical.
    alive = [entry for entry in entries if all(c["Status"] != "critical" for c in entry["Checks"])]
    body = {
        "Service": name, "Nodes": alive, "DNS": {"TTL": query.get("DNS", {}).get("TTL", "")},
        "Datacenter": call.state.options.datacenter, "Failovers": 0, "Index": 0,
        "LastContact": 0, "KnownLeader": True, "ConsistencyLevel": "leader",
        "NotModified": False, "Backend": 0,
    }  # fmt: skip
    return Answer(body, index=1, consistent=True)


# Discovery chains


def _chain_topics(call: Call) -> tuple[str, ...]:
    return ("config", "roots")


def discovery_chain(call: Call) -> Answer:
    """``GET /v1/discovery-chain/:service``: unknown services have the default chain."""
    state, name = call.state, call.args[0]
    call.rights.require("service:read", name)
    datacenter = call.request.first("compile-dc") or state.options.datacenter
    domain = state.ca.trust_domain
    chain = compile_chain(name, datacenter, domain, state.entries.get, state.entries.protocol)
    index = state.index.of(*_chain_topics(call))
    return Answer({"Chain": chain}, index=index, consistent=True)
