"""
Routes of intentions: match, check, the exact form, and the legacy form by UUID.

Source: Consul HTTP API (reference 4.3, 4.4).
"""

from __future__ import annotations

import re
import uuid
from typing import Any

from . import schemas
from .decode import decode_body
from .definitions import several
from .http import Answer, Refusal
from .routes_connect import go_time
from .routing import Call, Table
from .state import State

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def add_routes(table: Table) -> None:
    """Register the routes of this module."""
    base = "/v1/connect/intentions"

    def all_topic(call: Call) -> tuple[str, ...]:
        return ("intentions",)

    table.add("GET", f"{base}/match", topics=_match_topics)(match)
    table.add("GET", f"{base}/check")(check)
    table.add("GET", f"{base}/exact")(get_exact)
    table.add("PUT", f"{base}/exact")(put_exact)
    table.add("DELETE", f"{base}/exact")(delete_exact)
    table.add("GET", base, topics=all_topic)(list_intentions)
    table.add("POST", base)(create_legacy)
    table.add("GET", f"{base}/{{}}", topics=all_topic)(get_legacy)
    table.add("PUT", f"{base}/{{}}")(put_legacy)
    table.add("DELETE", f"{base}/{{}}")(delete_legacy)


def _match_topics(call: Call) -> tuple[str, ...]:
    if call.request.first("by") == "source":
        return ("intentions",)
    names = [_plain(name) for name in call.request.query.get("name", [])]
    return (*(f"intentions/{name.lower()}" for name in names), "intentions/*")


def _plain(name: str) -> str:
    namespace, slash, rest = name.partition("/")
    if not slash:
        return name
    if namespace != "default":
        raise Refusal(
            400, f'Bad request: Invalid namespace "{namespace}": Namespaces are a Consul'
            " Enterprise feature"
        )  # fmt: skip
    return rest


def _needed(call: Call, name: str) -> str:
    value = call.request.first(name)
    if not value:
        raise Refusal(500, f"required query parameter '{name}' not set")
    return _plain(value)


def _needed_pair(call: Call) -> tuple[str, str]:
    return _needed(call, "source"), _needed(call, "destination")


def match(call: Call) -> Answer:
    """``GET /v1/connect/intentions/match``."""
    by = call.request.first("by")
    if not by:
        raise Refusal(500, "required query parameter 'by' not set")
    if by not in ("source", "destination"):
        raise Refusal(500, "'by' parameter must be one of 'source' or 'destination'")
    names = call.request.query.get("name", [])
    if not names:
        raise Refusal(500, "required query parameter 'name' not set")
    for name in names:
        call.rights.require("intentions:read", _plain(name))
    found = {name: call.state.match(by, _plain(name)) or None for name in names}
    return Answer(found, index=call.state.index.of(*_match_topics(call)), consistent=True)


def check(call: Call) -> Answer:
    """``GET /v1/connect/intentions/check``."""
    source, destination = _needed_pair(call)
    if call.request.first("source-type") not in ("", "consul"):
        raise Refusal(500, "'source-type' must be 'consul'")
    call.rights.require("service:read", destination)
    return Answer({"Allowed": call.state.judge(source, destination).allowed})


def list_intentions(call: Call) -> Answer:
    """``GET /v1/connect/intentions``."""
    if call.request.first("filter"):
        raise Refusal(400, "the dev agent reads no filter expressions")
    index = call.state.index.of("intentions")
    found = [item for item in call.state.intentions() if _readable(call, item)]
    return Answer(found, index=index)


def _readable(call: Call, item: dict[str, Any]) -> bool:
    names = item["SourceName"], item["DestinationName"]
    return any(call.rights.may("intentions:read", name) for name in names)


def _find_exact(call: Call, source: str, destination: str) -> dict[str, Any] | None:
    for item in call.state.match("destination", destination):
        same = item["DestinationName"].lower() == destination.lower()
        if same and item["SourceName"] == source and not item.get("SourcePeer"):
            return item
    return None


def get_exact(call: Call) -> Answer:
    """``GET /v1/connect/intentions/exact``."""
    source, destination = _needed_pair(call)
    call.rights.require("intentions:read", destination)
    found = _find_exact(call, source, destination)
    if found is None:
        raise Refusal(404, "Intention not found")
    return Answer(found)


def put_exact(call: Call) -> Answer:
    """``PUT /v1/connect/intentions/exact``: sets one source of the destination's entry."""
    source, destination = _needed_pair(call)
    body = decode_body(call.request.json(), schemas.INTENTION)
    call.rights.require("intentions:write", destination)
    set_intention(call.state, source, destination, body)
    return Answer(True)


def set_intention(state: State, source: str, destination: str, body: dict[str, Any]) -> None:
    """
    Upsert one source of the entry of *destination*; its legacy IDs vanish.

    Raises:
        Refusal: a rule is broken.
    """
    with state.lock:
        entry = state.entries.get("service-intentions", destination) or {}
        if body.get("Meta") and body["Meta"] != entry.get("Meta"):
            raise Refusal(500, "Meta must be omitted, or equal to that of the config entry")
        wanted: dict[str, Any] = {"Name": source, "Type": body.get("SourceType") or "consul"}
        wanted |= {key: body[key] for key in ("Action", "Permissions", "Description")
                   if key in body}  # fmt: skip
        sources = [_without_legacy(item) for item in entry.get("Sources", [])]
        places = [at for at, item in enumerate(sources) if item["Name"] == source]
        if places:
            sources[places[0]] = wanted
        else:
            sources.append(wanted)
        new = {"Kind": "service-intentions", "Name": destination, **entry, "Sources": sources}
        state.put_entry(new)


def _without_legacy(source: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in source.items() if not key.startswith("Legacy")}


def delete_exact(call: Call) -> Answer:
    """``DELETE /v1/connect/intentions/exact``: also when there is none."""
    source, destination = _needed_pair(call)
    call.rights.require("intentions:write", destination)
    remove_intention(call.state, source, destination)
    return Answer(True)


def remove_intention(state: State, source: str, destination: str) -> None:
    """Remove one source; the entry goes with its last one."""
    with state.lock:
        entry = state.entries.get("service-intentions", destination)
        if entry is None:
            return
        left = [item for item in entry["Sources"] if item["Name"] != source]
        if len(left) == len(entry["Sources"]):
            return
        if left:
            sources = [_without_legacy(item) for item in left]
            state.put_entry({**entry, "Sources": sources})
        else:
            state.delete_entry("service-intentions", entry["Name"])


# Legacy intentions, by UUID: what the command line of every Consul version writes


def _uuid(call: Call) -> str:
    text = call.args[0]
    if not _UUID.fullmatch(text):
        raise Refusal(400, "Bad request: failed intention lookup: index error: UUID must be 36"
                      " characters")  # fmt: skip
    return text


def _find_legacy(call: Call) -> dict[str, Any]:
    identity = _uuid(call)
    for item in call.state.intentions():
        if item.get("ID") == identity:
            return item
    raise Refusal(404, "Intention not found")


def _legacy_write(call: Call, word: str) -> dict[str, Any]:
    try:
        return _find_legacy(call)
    except Refusal as refusal:
        if refusal.status == 404:
            text = f"Cannot {word} non-existent intention: '{call.args[0]}'"
            raise Refusal(500, text) from None
        raise


def _check_legacy_body(body: dict[str, Any]) -> None:
    if body.get("Permissions"):
        raise Refusal(500, "Permissions cannot be written with a legacy intention")
    errors = [f"{name} must be set" for name in ("SourceName", "DestinationName")
              if not body.get(name)]  # fmt: skip
    if errors:
        raise Refusal(500, several(errors))


def _legacy_source(body: dict[str, Any], identity: str, created: str, now: str) -> dict[str, Any]:
    return {
        "Name": body["SourceName"],
        "Action": body.get("Action", ""),
        "Type": body.get("SourceType") or "consul",
        "LegacyID": identity,
        "LegacyMeta": body.get("Meta", {}),
        "LegacyCreateTime": created,
        "LegacyUpdateTime": now,
        **({"Description": body["Description"]} if body.get("Description") else {}),
    }


def create_legacy(call: Call) -> Answer:
    """``POST /v1/connect/intentions``."""
    body = decode_body(call.request.json(), schemas.INTENTION)
    if body.get("ID"):
        raise Refusal(400, "ID must be empty when creating an intention")
    _check_legacy_body(body)
    state, source, destination = call.state, body["SourceName"], body["DestinationName"]
    call.rights.require("intentions:write", destination)
    with state.lock:
        entry = state.entries.get("service-intentions", destination) or {}
        sources = entry.get("Sources", [])
        if any(item["Name"] == source for item in sources):
            raise Refusal(500, f"duplicate intention found: {source} => {destination}")
        if any("LegacyID" not in item for item in sources):
            raise Refusal(500, "cannot use the legacy API on a destination edited as a config"
                          " entry")  # fmt: skip
        now, identity = go_time(state.now()), str(uuid.uuid4())
        added = _legacy_source(body, identity, now, now)
        new = {**entry, "Kind": "service-intentions", "Name": destination,
               "Sources": [*sources, added]}  # fmt: skip
        state.put_entry(new)
    return Answer({"ID": identity})


def get_legacy(call: Call) -> Answer:
    """``GET /v1/connect/intentions/:uuid``."""
    index = call.state.index.of("intentions")
    found = _find_legacy(call)
    if not _readable(call, found):
        raise Refusal(403, "Permission denied")
    return Answer(found, index=index)


def put_legacy(call: Call) -> Answer:
    """``PUT /v1/connect/intentions/:uuid``."""
    found = _legacy_write(call, "modify")
    body = decode_body(call.request.json(), schemas.INTENTION)
    _check_legacy_body(body)
    state, destination = call.state, found["DestinationName"]
    if body["DestinationName"] != destination or body["SourceName"] != found["SourceName"]:
        raise Refusal(500, "Cannot modify the source or destination of an intention")
    call.rights.require("intentions:write", destination)
    with state.lock:
        entry = state.entries.get("service-intentions", destination) or {}
        changed = _legacy_source(body, found["ID"], found["CreatedAt"], go_time(state.now()))
        sources = [
            changed if item.get("LegacyID") == found["ID"] else item for item in entry["Sources"]
        ]
        state.put_entry({**entry, "Sources": sources})
    return Answer({"ID": found["ID"]})


def delete_legacy(call: Call) -> Answer:
    """``DELETE /v1/connect/intentions/:uuid``."""
    found = _legacy_write(call, "delete")
    call.rights.require("intentions:write", found["DestinationName"])
    with call.state.lock:
        entry = call.state.entries.get("service-intentions", found["DestinationName"]) or {}
        left = [item for item in entry["Sources"] if item.get("LegacyID") != found["ID"]]
        if left:
            call.state.put_entry({**entry, "Sources": left})
        else:
            call.state.delete_entry("service-intentions", entry["Name"])
    return Answer(True)
