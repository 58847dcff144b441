"""
Routes of the mesh itself: roots, leaf, CA configuration, authorize.

Source: Consul HTTP API (reference 2, 4.6).
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote

from . import schemas
from .ca import RootCa, colon_hex, key_id
from .decode import decode_body
from .http import EMPTY, Answer, Refusal
from .routing import Call, Table
from .state import State

_URI = re.compile(r"spiffe://([^/?#]*)([^?#]*)")
_SERVICE = re.compile(r"(?:/ap/[^/]+)?/ns/[^/]+/dc/[^/]+/svc/([^/]+)")
_OTHERS = re.compile(
    r"(?:/ap/[^/]+)?/agent/client/dc/[^/]+/id/[^/]+|(?:/ap/[^/]+)?/gateway/mesh/dc/[^/]+"
    r"|/agent/server/dc/[^/]+|"
)


def add_routes(table: Table) -> None:
    """Register the routes of this module."""

    def roots_topic(call: Call) -> tuple[str, ...]:
        return ("roots",)

    def leaf_topic(call: Call) -> tuple[str, ...]:
        return (f"leaf/{call.args[0]}",)

    def leaf_due(call: Call) -> datetime | None:
        return call.state.leaf_due(call.args[0])

    table.add("GET", "/v1/agent/connect/ca/roots", topics=roots_topic, cached=True)(agent_roots)
    table.add("GET", "/v1/agent/connect/ca/leaf/{}", topics=leaf_topic, cached=True, due=leaf_due)(
        leaf
    )
    table.add("POST", "/v1/agent/connect/authorize")(authorize)
    table.add("GET", "/v1/connect/ca/roots", topics=roots_topic)(server_roots)
    table.add("GET", "/v1/connect/ca/configuration")(get_configuration)
    table.add("PUT", "/v1/connect/ca/configuration")(put_configuration)


# Certificates


def go_time(moment: datetime) -> str:
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{moment.microsecond:06d}Z" if moment.microsecond else f"{text}Z"


def _root_view(root: RootCa, state: State) -> dict[str, Any]:
    certificate, active = root.certificate, root is state.ca.active
    public: Any = certificate.public_key()
    modified = max(root.created_index, state.index.of("roots"))
    return {
        "ID": root.id,
        "Name": "Consul CA Root Cert",
        "SerialNumber": certificate.serial_number & 0xFFFFFFFFFFFFFFFF,
        "SigningKeyID": colon_hex(key_id(root.key)),
        "ExternalTrustDomain": state.ca.cluster,
        "NotBefore": go_time(certificate.not_valid_before_utc),
        "NotAfter": go_time(certificate.not_valid_after_utc),
        "RootCert": root.pem,
        "IntermediateCerts": [root.cross_signed] if root.cross_signed else None,
        "Active": active,
        "PrivateKeyType": "ec" if hasattr(public, "curve") else "rsa",
        "PrivateKeyBits": public.key_size,
        "CreateIndex": root.created_index,
        "ModifyIndex": modified,
    }


def _roots(state: State) -> dict[str, Any]:
    return {
        "ActiveRootID": state.ca.active.id,
        "TrustDomain": state.ca.trust_domain,
        # By ID, as Consul lists them: the active one is anywhere.
        "Roots": [_root_view(root, state) for root in sorted(state.ca.roots, key=lambda r: r.id)],
    }


def _cache_headers(state: State, key: str, age: int = 0) -> tuple[tuple[str, str], ...]:
    if key in state.cached:
        return (("X-Cache", "HIT"), ("Age", str(age)))
    state.cached.add(key)
    return (("X-Cache", "MISS"),)


# What Consul says of answers that come from a cache: no sign of ill health. Source: 1.2.
_STALE = (("X-Consul-Knownleader", "false"), ("X-Consul-Lastcontact", "0"))


def agent_roots(call: Call) -> Answer:
    """``GET /v1/agent/connect/ca/roots``."""
    headers = _cache_headers(call.state, "roots") + _STALE
    return Answer(_roots(call.state), index=call.state.index.of("roots"), headers=headers)


def server_roots(call: Call) -> Answer:
    """``GET /v1/connect/ca/roots[?pem=true]``."""
    state = call.state
    if call.request.first("pem") in ("1", "t", "T", "true", "True", "TRUE"):
        text = "".join(root.pem + root.cross_signed for root in state.ca.roots)
        return Answer(
            text.encode(), headers=(("Content-Type", "application/pem-certificate-chain"),)
        )
    return Answer(_roots(state), index=state.index.of("roots"), headers=_STALE)


def leaf(call: Call) -> Answer:
    """``GET /v1/agent/connect/ca/leaf/:service``."""
    state, name = call.state, call.args[0]
    call.rights.require("service:write", name)
    _check_datacenter(call)
    if "/" in name:
        uri = state.identity("").uri + quote(name)
        raise Refusal(500, f"SPIFFE ID is not in the expected format: {uri}")
    held = state.leaves.get(name)
    issued = state.leaf(name, blocking=call.blocking)
    age = max(0, int((state.now() - issued.at).total_seconds()))
    headers: tuple[tuple[str, str], ...] = (("X-Cache", "MISS"),)
    if held is issued:
        headers = (("X-Cache", "HIT"), ("Age", str(age)))
    body = {
        "SerialNumber": issued.leaf.serial,
        "CertPEM": issued.leaf.chain_pem,
        "PrivateKeyPEM": issued.leaf.key_pem,
        "Service": issued.leaf.service,
        "ServiceURI": issued.leaf.uri,
        "ValidAfter": go_time(issued.leaf.not_before),
        "ValidBefore": go_time(issued.leaf.not_after),
        "CreateIndex": issued.index,
        "ModifyIndex": issued.index,
    }
    return Answer(body, index=issued.index, headers=headers, meta=False)


def _check_datacenter(call: Call) -> None:
    wanted = call.request.first("dc")
    if wanted and wanted != call.state.options.datacenter:
        raise Refusal(500, "No path to datacenter")


def get_configuration(call: Call) -> Answer:
    """``GET /v1/connect/ca/configuration``."""
    call.rights.require("operator:write")
    held = call.state.ca_config
    return Answer(
        {
            "Provider": "consul",
            "Config": held.config,
            "State": None,
            "ForceWithoutCrossSigning": False,
            "CreateIndex": held.created,
            "ModifyIndex": held.modified,
        }
    )


def put_configuration(call: Call) -> Answer:
    """``PUT /v1/connect/ca/configuration``: another key or root rotates."""
    call.rights.require("operator:write")
    body = decode_body(call.request.json(), schemas.CA_CONFIG)
    if body.get("Provider", "consul") != "consul":
        raise Refusal(
            500, f'could not initialize provider: unknown CA provider "{body["Provider"]}"'
        )
    if body.get("State"):
        raise Refusal(500, "State must be absent or unchanged")
    config = body.get("Config") or {}
    if not isinstance(config, dict):
        raise Refusal(400, "Request decode failed: Config must be an object")
    call.state.configure_ca(config, cross=not body.get("ForceWithoutCrossSigning", False))
    return EMPTY


def authorize(call: Call) -> Answer:
    """``POST /v1/agent/connect/authorize``."""
    body = decode_body(call.request.json(), schemas.AUTHORIZE)
    target = body.get("Target", "")
    if not target:
        raise Refusal(400, "Bad request: Target service must be specified")
    source = _source_of(body.get("ClientCertURI", ""))
    call.rights.require("service:write", target)
    verdict = call.state.judge(source, target)
    headers = _cache_headers(call.state, f"authorize/{target}")
    return Answer({"Authorized": verdict.allowed, "Reason": verdict.reason}, headers=headers)


def _source_of(uri: str) -> str:
    found = _URI.fullmatch(uri)
    path = found[2] if found else None
    service = _SERVICE.fullmatch(path) if path is not None else None
    if service:
        return unquote(service[1])
    if path is not None and _OTHERS.fullmatch(path):
        raise Refusal(400, "Bad request: ClientCertURI not a valid Service identifier")
    raise Refusal(400, "Bad request: ClientCertURI not a valid Connect identifier")
