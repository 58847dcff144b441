"""
Routes of the local agent: registration, checks, and what the agent says of itself.

Source: Consul HTTP API, agent endpoints (reference 6.1 to 6.3, 10.1).
"""

from __future__ import annotations

from typing import Any

from . import schemas
from .decode import decode_body
from .definitions import Service
from .http import EMPTY, Answer, Refusal
from .routing import Call, Table
from .services import statuses
from .views import agent_service, check_view, content_hash

VERSION = "1.21.0+mesh"
_NOBODY = Service("", "")


def add_routes(table: Table) -> None:
    """Register the routes of this module."""
    table.add("PUT", "/v1/agent/service/register")(register)
    table.add("PUT", "/v1/agent/service/deregister/{}")(deregister)
    table.add("PUT", "/v1/agent/service/maintenance/{}")(maintenance)
    table.add("GET", "/v1/agent/services")(services)
    table.add("GET", "/v1/agent/service/{}", topics=_instance_topic)(service)
    table.add("PUT", "/v1/agent/check/register")(register_check)
    table.add("PUT", "/v1/agent/check/deregister/{}")(deregister_check)
    table.add("PUT", "/v1/agent/check/update/{}")(update_check)
    table.add("PUT", "/v1/agent/check/pass/{}")(_setter("passing"))
    table.add("PUT", "/v1/agent/check/warn/{}")(_setter("warning"))
    table.add("PUT", "/v1/agent/check/fail/{}")(_setter("critical"))
    table.add("GET", "/v1/agent/checks")(checks)
    table.add("GET", "/v1/agent/health/service/id/{}")(health_by_id)
    table.add("GET", "/v1/agent/health/service/name/{}")(health_by_name)
    table.add("GET", "/v1/agent/self")(self_view)
    table.add("GET", "/v1/agent/members")(members)
    table.add("GET", "/v1/status/leader")(lambda call: Answer(_server(call)))
    table.add("GET", "/v1/status/peers")(lambda call: Answer([_server(call)]))


def _server(call: Call) -> str:
    return f"{call.state.node.address}:8300"


# Registration


def register(call: Call) -> Answer:
    """``PUT /v1/agent/service/register``."""
    wanted = decode_body(call.request.json(), schemas.SERVICE)
    if wanted.get("Name"):
        call.rights.require("service:write", wanted["Name"])
    target = (wanted.get("Proxy") or {}).get("DestinationServiceName")
    if target:
        call.rights.require("service:write", target)
    replacing = call.request.first("replace-existing-checks") in ("1", "t", "true", "True")
    call.state.change_services(
        lambda now, index: call.state.services.register(
            wanted, now, index, replace_checks=replacing
        )
    )
    return EMPTY


def _allow_write(call: Call, service_id: str) -> None:
    held = call.state.services.services.get(service_id)
    if held is not None:
        call.rights.require("service:write", held.name)


def deregister(call: Call) -> Answer:
    """``PUT /v1/agent/service/deregister/:id``; an unknown one is no error, as in 1.10."""
    _allow_write(call, call.args[0])
    call.state.change_services(lambda now, index: call.state.services.deregister(call.args[0]))
    return EMPTY


def maintenance(call: Call) -> Answer:
    """``PUT /v1/agent/service/maintenance/:id?enable=``."""
    _allow_write(call, call.args[0])
    enable = call.request.first("enable")
    if enable not in ("true", "false", "1", "0", "t", "f"):
        raise Refusal(400, "Missing value for enable" if not enable else
                      f'Invalid value for enable: "{enable}"')  # fmt: skip
    on, reason = enable in ("true", "1", "t"), call.request.first("reason")
    call.state.change_services(
        lambda now, index: call.state.services.maintain(call.args[0], on, reason, now, index)
    )
    return EMPTY


def _instance_topic(call: Call) -> tuple[str, ...]:
    return (f"instance/{call.args[0]}",)


def services(call: Call) -> Answer:
    """``GET /v1/agent/services``."""
    held = call.state.services.services.values()
    views = {
        one.id: agent_service(one, call.state.node)
        for one in sorted(held, key=lambda one: one.id)
        if call.rights.may("service:read", one.name)
    }
    return Answer(views)


def service(call: Call) -> Answer:
    """``GET /v1/agent/service/:id``, the one that blocks on a hash."""
    held = call.state.services.services.get(call.args[0])
    if held is None:
        raise Refusal(404, f"unknown service ID: {call.args[0]}")
    call.rights.require("service:read", held.name)
    view = agent_service(held, call.state.node)
    text = content_hash(held, call.state.node)
    datacenter = view.pop("Datacenter")
    connect = {"Connect": view.pop("Connect")} if "Connect" in view else {}
    body = {**view, "ContentHash": text, **connect, "Datacenter": datacenter}
    return Answer(body, hash=text)


# Checks


def _owner(call: Call, check_id: str) -> Service:
    check = call.state.services.checks.get(check_id)
    return call.state.services.services.get(check.service_id, _NOBODY) if check else _NOBODY


def _allow_check(call: Call, check_id: str) -> None:
    owner = _owner(call, check_id)
    if owner.name:
        call.rights.require("service:write", owner.name)


def register_check(call: Call) -> Answer:
    """``PUT /v1/agent/check/register``."""
    wanted = decode_body(call.request.json(), schemas.CHECK)
    _allow_write(call, wanted.get("ServiceID", ""))
    call.state.change_services(
        lambda now, index: call.state.services.register_check(wanted, now, index)
    )
    return EMPTY


def deregister_check(call: Call) -> Answer:
    """``PUT /v1/agent/check/deregister/:id``."""
    _allow_check(call, call.args[0])
    call.state.change_services(
        lambda now, index: call.state.services.deregister_check(call.args[0])
    )
    return EMPTY


def _set(call: Call, status: str, output: str) -> Answer:
    _allow_check(call, call.args[0])
    call.state.change_services(
        lambda now, index: call.state.services.update(call.args[0], status, output, now, index)
    )
    return EMPTY


def update_check(call: Call) -> Answer:
    """``PUT /v1/agent/check/update/:id``."""
    body = decode_body(call.request.json(), schemas.CHECK_UPDATE)
    return _set(call, body.get("Status", ""), body.get("Output", ""))


def _setter(status: str) -> Any:
    def set_status(call: Call) -> Answer:
        return _set(call, status, call.request.first("note"))

    return set_status


def checks(call: Call) -> Answer:
    """``GET /v1/agent/checks``: the agent's own view, without indexes."""
    held = sorted(call.state.services.checks.values(), key=lambda one: one.id)
    views = {}
    for one in held:
        owner = call.state.services.services.get(one.service_id, _NOBODY)
        if call.rights.may("service:read", owner.name):
            view = check_view(one, owner, call.state.node)
            views[one.id] = view | {"CreateIndex": 0, "ModifyIndex": 0}
    return Answer(views)


# Health of local services, as a load balancer asks for it

_STATUS_CODES = {"passing": 200, "warning": 429, "critical": 503, "maintenance": 503}


def health_by_id(call: Call) -> Answer:
    """``GET /v1/agent/health/service/id/:id``."""
    held = call.state.services.services.get(call.args[0])
    if held is None:
        nothing = {"AggregatedStatus": "critical", "Service": None, "Checks": None}
        return _health_answer(call, nothing, 404, "critical", f"ServiceId {call.args[0]} not found")
    call.rights.require("service:read", held.name)
    status, view = _health_of(call, held)
    return _health_answer(call, view, _STATUS_CODES[status], status, status)


def health_by_name(call: Call) -> Answer:
    """``GET /v1/agent/health/service/name/:name``."""
    call.rights.require("service:read", call.args[0])
    found = [_health_of(call, one) for one in call.state.services.named(call.args[0])]
    if not found:
        return _health_answer(call, [], 404, "critical", f"ServiceName {call.args[0]} Not Found")
    worst = max((status for status, _ in found), key=list(_STATUS_CODES).index)
    return _health_answer(call, [view for _, view in found], _STATUS_CODES[worst], worst, worst)


def _health_of(call: Call, service: Service) -> tuple[str, dict[str, Any]]:
    state = call.state
    checks = state.services.checks_of(service.id)
    status = "maintenance" if any(c.kind == "maintenance" for c in checks) else statuses(checks)
    views = [check_view(check, service, state.node) for check in checks]
    body = {
        "AggregatedStatus": status,
        "Service": agent_service(service, state.node),
        "Checks": views,
    }
    return status, body


def _health_answer(call: Call, body: Any, code: int, status: str, reason: str) -> Answer:
    headers = (("X-Consul-Reason", reason),)
    wants_text = "text/plain" in call.request.headers.get("accept", "")
    if call.request.first("format") == "text" or wants_text:
        return Answer(status.encode(), code, headers=(("Content-Type", "text/plain"), *headers))
    # An unhealthy service is no error: its body is JSON all the same, so it goes as bytes.
    text, kind = Answer(body).encode()
    return Answer(text, code, headers=(("Content-Type", kind), *headers))


# The agent itself


def self_view(call: Call) -> Answer:
    """``GET /v1/agent/self``."""
    call.rights.require("agent:read", call.state.node.name)
    options, node = call.state.options, call.state.node
    plain = options.acl is None and options.default_policy == options.header_policy == "allow"
    intended = "" if plain or options.acl is not None else options.default_policy
    return Answer(
        {
            "Config": {
                "Datacenter": node.datacenter, "PrimaryDatacenter": node.datacenter,
                "NodeName": node.name, "NodeID": node.id, "Revision": "", "Server": True,
                "Version": VERSION,
            },
            "DebugConfig": {
                "ACLsEnabled": options.acl is not None,
                "ACLDefaultPolicy": options.header_policy,
                "DefaultIntentionPolicy": intended,
                "Datacenter": node.datacenter, "NodeName": node.name, "NodeID": node.id,
                "ConnectEnabled": True, "DevMode": True,
            },
            "Coord": {
                "Vec": [0.0] * 8, "Error": 1.5, "Adjustment": 0.0, "Height": 1e-05,
            },
            "Member": _member(call),
            "Stats": {"agent": {"services": str(len(call.state.services.services))},
                      "build": {"version": VERSION, "revision": "", "prerelease": ""},
                      "consul": {"leader": "true", "server": "true"}},
            "Meta": {"consul-network-segment": ""},
        }
    )  # fmt: skip


def _member(call: Call) -> dict[str, Any]:
    node = call.state.node
    tags = {
        "acls": "1" if call.state.options.acl else "0", "build": f"{VERSION}:",
        "dc": node.datacenter, "ft_fs": "1", "ft_si": "1", "id": node.id, "port": "8300",
        "raft_vsn": "3", "role": "consul", "segment": "", "vsn": "2", "vsn_max": "3",
        "vsn_min": "2", "wan_join_port": "8302",
    }  # fmt: skip
    numbers = {
        "Status": 1, "ProtocolMin": 1, "ProtocolMax": 5, "ProtocolCur": 2, "DelegateMin": 2,
        "DelegateMax": 5, "DelegateCur": 4,
    }  # fmt: skip
    return {"Name": node.name, "Addr": node.address, "Port": 8301, "Tags": tags, **numbers}


def members(call: Call) -> Answer:
    """``GET /v1/agent/members``."""
    readable = call.rights.may("node:read", call.state.node.name)
    return Answer([_member(call)] if readable else [])
