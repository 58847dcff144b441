"""
Services and checks registered with the agent: definitions, TTLs, the reaper.

Owns registration rules, check IDs and status, expiry and reaping as functions of a given moment,
and what of it survives a restart. Reports which topics a change touched; knows no index counter,
no HTTP, no clock. Of checks only TTL is carried out: the agent dials nobody.

Source: Consul agent API (reference 6.1, 6.2).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from .definitions import (
    STATUSES,
    Check,
    Service,
    check_definitions,
    read_check,
    read_service,
)
from .http import Refusal

REAP_EVERY = 30.0
"""Seconds between the reaper's rounds. Source: reference 6.1."""
SIDECAR_PORTS = range(21000, 21256)


@dataclass(frozen=True, slots=True)
class Change:
    """Topics that a write touched; none when nothing changed."""

    topics: frozenset[str] = frozenset()

    def __or__(self, other: Change) -> Change:
        return Change(self.topics | other.topics)


class Services:
    """
    The instances and checks of one agent.

    Args:
        started: first moment of the reaper's rounds.
    """

    def __init__(self, started: datetime) -> None:
        self.services: dict[str, Service] = {}
        self.checks: dict[str, Check] = {}
        self._started = started

    # Registration

    def register(
        self, wanted: dict[str, Any], now: datetime, index: int, *, replace_checks: bool = False
    ) -> Change:
        """
        Register or update a service, as decoded from its definition.

        Args:
            index: what the change is stored at, if it is one.
            replace_checks: remove checks that the definition does not name.

        Raises:
            Refusal: the definition breaks a rule; nothing was stored.
        """
        service = read_service(wanted, index)
        sidecar = (wanted.get("Connect") or {}).get("SidecarService")
        definitions = check_definitions(wanted)
        checks = [
            read_check(one, service, at, len(definitions), now, index)
            for at, one in enumerate(definitions, 1)
        ]
        beside = self._read_sidecar(sidecar, service, now, index) if sidecar is not None else None
        change = self._store(service, checks, replace_checks=replace_checks)
        if beside:
            change |= self._store(*beside, replace_checks=replace_checks)
        return change

    def _store(self, service: Service, checks: list[Check], *, replace_checks: bool) -> Change:
        old = self.services.get(service.id)
        topics: set[str] = set()
        if old is None or _same(old) != _same(service):
            created = old.created if old else service.created
            self.services[service.id] = replace(service, created=created)
            topics.update(service.topics, old.topics if old else ())
        if replace_checks:
            named = {check.id for check in checks}
            for check in self.checks_of(service.id):
                if check.id not in named:
                    topics.update(self._drop_check(check.id).topics)
        for check in checks:
            topics.update(self._store_check(check).topics)
        return Change(frozenset(topics))

    def _store_check(self, check: Check) -> Change:
        old = self.checks.get(check.id)
        if old is not None:
            # Consul keeps status and output of a check that is registered again. Source: 6.1.
            check = replace(
                check,
                status=old.status,
                output=old.output,
                expires=old.expires if old.ttl == check.ttl else check.expires,
                critical_since=old.critical_since,
                created=old.created,
            )
        self.checks[check.id] = check
        unchanged = old is not None and _same(old) == _same(check)
        if old is not None and unchanged:
            self.checks[check.id] = replace(check, modified=old.modified)
        return Change() if unchanged else self._touched(check)

    def register_check(self, wanted: dict[str, Any], now: datetime, index: int) -> Change:
        """
        Register a check by itself.

        Raises:
            Refusal: no name, no kind, or an unknown service.
        """
        if not wanted.get("Name"):
            raise Refusal(400, "Missing check name")
        service_id = wanted.get("ServiceID", "")
        if service_id and service_id not in self.services:
            raise Refusal(500, f"ServiceID {json.dumps(service_id)} does not exist")
        name = wanted["Name"]
        identity = wanted.get("ID") or wanted.get("CheckID") or name
        owner = self.services.get(service_id) or Service("", "")
        definition = {**wanted, "CheckID": identity}
        return self._store_check(read_check(definition, owner, 1, 1, now, index))

    def deregister(self, service_id: str) -> Change:
        """Remove a service, its checks and its sidecar; an unknown one changes nothing."""
        service = self.services.pop(service_id, None)
        if service is None:
            return Change()
        change = Change(frozenset(service.topics))
        for check in self.checks_of(service_id):
            change |= self._drop_check(check.id)
        for other in list(self.services.values()):
            if other.sidecar_of == service_id:
                change |= self.deregister(other.id)
        return change

    def deregister_check(self, check_id: str) -> Change:
        """Remove a check; an unknown one changes nothing."""
        return self._drop_check(check_id) if check_id in self.checks else Change()

    def _drop_check(self, check_id: str) -> Change:
        return self._touched(self.checks.pop(check_id))

    def _touched(self, check: Check) -> Change:
        service = self.services.get(check.service_id)
        return Change(frozenset((*(service.topics if service else ()), "checks")))

    def _read_sidecar(
        self, wanted: dict[str, Any], parent: Service, now: datetime, index: int
    ) -> tuple[Service, list[Check]]:
        identity = f"{parent.id}-sidecar-proxy"
        proxy = {
            "DestinationServiceName": parent.name,
            "DestinationServiceID": parent.id,
            "LocalServiceAddress": "127.0.0.1",
            "LocalServicePort": parent.port,
            **(wanted.get("Proxy") or {}),
        }
        port = wanted.get("Port") or self._sidecar_port(identity)
        definition = {
            "Name": f"{parent.name}-sidecar-proxy", **wanted, "ID": identity, "Port": port,
            "Kind": "connect-proxy", "Proxy": proxy,
        }  # fmt: skip
        service = replace(read_service(definition, index), sidecar_of=parent.id)
        listening = {"Name": "Connect Sidecar Listening", "TCP": f"127.0.0.1:{port}"}
        alias = {
            "Name": f"Connect Sidecar Aliasing {parent.id}",
            "AliasService": parent.id,
            "Status": "passing",
        }
        named = check_definitions(wanted) or [listening, alias]
        checks = [
            read_check(one, service, at, len(named), now, index) for at, one in enumerate(named, 1)
        ]
        return service, checks

    def _sidecar_port(self, identity: str) -> int:
        if identity in self.services:
            return self.services[identity].port
        taken = {service.port for service in self.services.values()}
        free = [port for port in SIDECAR_PORTS if port not in taken]
        if not free:
            raise Refusal(400, "Invalid SidecarService: no free port in 21000-21255")
        return free[0]

    # Status

    def update(self, check_id: str, status: str, output: str, now: datetime, index: int) -> Change:
        """
        Set a TTL check.

        Raises:
            Refusal: 400 for the status, 500 for the check.
        """
        if status not in STATUSES:
            raise Refusal(400, f"Invalid check status: '{status}'")
        check = self.checks.get(check_id)
        if check is None or not check.ttl:
            raise Refusal(500, f"CheckID {json.dumps(check_id)} does not have associated TTL")
        expires = now + timedelta(seconds=check.ttl)
        return self._set(replace(check, expires=expires), status, output, now, index)

    def _set(self, check: Check, status: str, output: str, now: datetime, index: int) -> Change:
        changed = status != check.status
        since = check.critical_since or now if status == "critical" else None
        self.checks[check.id] = replace(
            check,
            status=status,
            output=output,
            critical_since=since,
            # An output alone reaches the catalog late; it wakes nobody. Source: 10.1, 6.2.
            modified=index if changed else check.modified,
        )
        return self._touched(self.checks[check.id]) if changed else Change()

    def maintain(self, service_id: str, on: bool, reason: str, now: datetime, index: int) -> Change:
        """
        Put a service into maintenance, by a critical check, or take it out.

        Raises:
            Refusal: 404, unknown service.
        """
        if service_id not in self.services:
            raise Refusal(404, f"No service registered with ID {json.dumps(service_id)}")
        identity = f"_service_maintenance:{service_id}"
        if not on:
            return self.deregister_check(identity)
        if identity in self.checks:
            return Change()
        default = "Maintenance mode is enabled for this service, but no reason was provided."
        check = Check(
            identity, "Service Maintenance Mode", "critical", "maintenance", service_id,
            notes=reason or f"{default} This is a default message.",
            critical_since=now, created=index, modified=index,
        )  # fmt: skip
        return self._store_check(check)

    def next_due(self) -> datetime | None:
        """When `expire` will have something to do, unless a heartbeat comes first."""
        moments = [check.expires for check in self.checks.values() if _may_expire(check)]
        moments += [self._reap_at(check) for check in self.checks.values()]
        return min((moment for moment in moments if moment), default=None)

    def expire(self, now: datetime, index: int) -> Change:
        """Turn overdue TTL checks critical, deregister services critical for too long."""
        change = Change()
        for check in list(self.checks.values()):
            if _may_expire(check) and check.expires is not None and check.expires <= now:
                said = f" (last output before timeout follows): {check.output}"
                output = "TTL expired" + (said if check.output else "")
                change |= self._set(check, "critical", output, check.expires, index)
        for check in list(self.checks.values()):
            due = self._reap_at(check)
            if due is not None and due <= now:
                change |= self.deregister(check.service_id)
        return change

    def _reap_at(self, check: Check) -> datetime | None:
        if not check.reap_after or check.critical_since is None or not check.service_id:
            return None
        ripe = (check.critical_since - self._started).total_seconds() + check.reap_after
        rounds = -(-ripe // REAP_EVERY)
        return self._started + timedelta(seconds=rounds * REAP_EVERY)

    # Reading

    def checks_of(self, service_id: str) -> list[Check]:
        """Checks of one instance, in the order of their IDs."""
        found = [check for check in self.checks.values() if check.service_id == service_id]
        return sorted(found, key=lambda check: check.id)

    def node_checks(self) -> list[Check]:
        """Checks of the node itself, registered without a service."""
        return [check for check in self.checks.values() if not check.service_id]

    def named(self, name: str) -> list[Service]:
        """Instances registered under *name*."""
        return [service for service in self.services.values() if service.name == name]

    def connecting(self, name: str) -> list[Service]:
        """Instances through which a mesh connection reaches *name*."""
        return [service for service in self.services.values() if service.connects == name]

    # The state file

    def dump(self) -> dict[str, Any]:
        """Definitions and statuses as JSON values."""
        return {
            "services": [dataclasses.asdict(service) for service in self.services.values()],
            "checks": [_dump_check(check) for check in self.checks.values()],
        }

    def load(self, saved: dict[str, Any], now: datetime, index: int) -> None:
        """What `dump` gave; each TTL starts anew, as after an agent's restart."""
        for item in saved["services"]:
            values = {**item, "tags": tuple(item["tags"]), "created": index, "modified": index}
            self.services[item["id"]] = Service(**values)
        for item in saved["checks"]:
            check = Check(**{**item, "created": index, "modified": index})
            expires = now + timedelta(seconds=check.ttl) if check.ttl else None
            since = now if check.status == "critical" else None
            self.checks[check.id] = replace(check, expires=expires, critical_since=since)


def _dump_check(check: Check) -> dict[str, Any]:
    return {**dataclasses.asdict(check), "expires": None, "critical_since": None}


def _may_expire(check: Check) -> bool:
    return bool(check.ttl) and check.status != "critical"


def _same(item: Service | Check) -> tuple[Any, ...]:
    skipped = {"created", "modified", "expires", "critical_since", "output"}
    return tuple(
        getattr(item, part.name) for part in dataclasses.fields(item) if part.name not in skipped
    )


def statuses(checks: Iterable[Check]) -> str:
    """The worst status among *checks*; passing when there are none."""
    found = {check.status for check in checks}
    return next((status for status in reversed(STATUSES) if status in found), "passing")
