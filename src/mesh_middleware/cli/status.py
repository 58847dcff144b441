"""``mesh status``: what the agent knows of the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .options import Agent, AsJson

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .api import AgentApi


def status(agent: Agent = None, as_json: AsJson = False) -> int:
    """Show what the agent knows of the mesh."""
    from . import api, options

    with api.connect(agent) as connection:
        found = collect(connection)
    if as_json:
        options.print_json(found)
    else:
        _print(found)
    return 0


def collect(api: AgentApi) -> dict[str, Any]:
    """
    Ask the agent for everything ``mesh status`` shows.

    Args:
        api: the agent.

    Returns:
        JSON-able data: ``agent``, ``trust_domain``, ``roots``, ``default_policy``, ``services``.
    """
    roots = api.table("/v1/agent/connect/ca/roots")
    services = _by_id(api, "/v1/agent/services")
    checks = _by_id(api, "/v1/agent/checks")
    return {
        "agent": api.address,
        "trust_domain": roots.get("TrustDomain"),
        "roots": [_root(item) for item in _tables(roots.get("Roots"), "roots")],
        "default_policy": default_policy(api, str(roots.get("TrustDomain"))),
        "services": [
            _service(item, checks)
            for item in services.values()
            if (item.get("Connect") or {}).get("Native")
        ],
    }


def _by_id(api: AgentApi, path: str) -> dict[str, Any]:
    found = api.table(path)
    _tables(list(found.values()), path)
    return found


def _tables(found: object, what: str) -> list[dict[str, Any]]:
    from ..exceptions import AgentAnswerError

    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise AgentAnswerError(f"{what}: no list of JSON objects")
    return found


def default_policy(api: AgentApi, trust_domain: str) -> str:
    """
    Find out what happens to a pair that no intention names.

    Args:
        api: the agent.
        trust_domain: of the cluster.

    Returns:
        ``allow``, ``deny``, or why it cannot be told.

    Source: reference 4.7, way 3: authorize a source and a target that surely nobody knows.
    """
    import uuid

    from ..exceptions import AgentRefusedError

    nobody = f"nobody-{uuid.uuid4().hex}"
    question = {
        "Target": nobody,
        "ClientCertURI": f"spiffe://{trust_domain}/ns/default/dc/dc1/svc/{nobody}",
        "ClientCertSerial": "01",
    }
    try:
        answer = api.call("POST", "/v1/agent/connect/authorize", question)
    except AgentRefusedError:
        return "unknown: the token may not ask"
    if not isinstance(answer, dict):
        return "unknown: the agent does not tell"
    if "intention:" in str(answer.get("Reason")):
        return "hidden by an intention for * -> *"
    return "allow" if answer.get("Authorized") is True else "deny"


def _root(item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": item.get("ID"),
        "name": item.get("Name"),
        "active": bool(item.get("Active")),
        "not_after": item.get("NotAfter"),
    }


def _service(item: Mapping[str, Any], checks: Mapping[str, Any]) -> dict[str, Any]:
    mine = [check for check in checks.values() if check.get("ServiceID") == item.get("ID")]
    states = {str(check.get("Status")) for check in mine}
    worst = next((state for state in ("critical", "warning") if state in states), "passing")
    return {
        "service": item.get("Service"),
        "id": item.get("ID"),
        "address": item.get("Address") or "",
        "port": item.get("Port") or 0,
        "health": worst,
        "checks": [
            {key: check.get(name) for key, name in _CHECK.items()}
            for check in sorted(mine, key=lambda check: str(check.get("CheckID")))
        ],
    }


_CHECK = {"id": "CheckID", "status": "Status", "output": "Output"}
_COLOURS = {"passing": "green", "warning": "yellow", "critical": "red"}


def _print(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, emoji=False)
    console.print(f"agent           {escape(str(found['agent']))}")
    console.print(f"trust domain    {escape(str(found['trust_domain']))}")
    console.print(f"default policy  {escape(str(found['default_policy']))}")
    for root in found["roots"]:
        state = "active" if root["active"] else "still trusted"
        console.print(
            f"root            {root['id']}  {state}, until {root['not_after']}", soft_wrap=True
        )
    if not found["services"]:
        console.print("services        none is registered as connect.native")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("SERVICE", "ID", "ADDRESS", "HEALTH", "SAYS"):
        table.add_column(title)
    for item in found["services"]:
        colour = _COLOURS.get(item["health"], "red")
        says = next((check["output"] for check in item["checks"] if check["output"]), "")
        table.add_row(
            escape(str(item["service"])),
            escape(str(item["id"])),
            escape(f"{item['address']}:{item['port']}"),
            f"[{colour}]{item['health']}[/]",
            escape(str(says)),
        )
    console.print(table)
