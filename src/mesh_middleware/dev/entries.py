"""
Config entries: kept by kind and name, checked against each other.

Owns the store of every kind the mesh reads, compare-and-set, and the rules between entries:
permissions need an HTTP protocol, JWT providers must exist, subsets must be defined. The rules
inside intentions are in `intentions`. Indexes are arguments; knows no HTTP and no lock.

Source: Consul config entries (reference 4.1, 4.5, 7).
"""

from __future__ import annotations

import json
from typing import Any

from . import intentions
from .chains import compile_chain
from .decode import decode_entry, without_empty
from .http import Refusal
from .schemas import ENTRIES

Entry = dict[str, Any]
_SINGLETONS = {"proxy-defaults": "global", "mesh": "mesh"}


def check_kind(kind: str, *, status: int = 500, prefix: str = "") -> None:
    """
    Refuse a kind that is not served.

    Raises:
        Refusal: with Consul's text.
    """
    if kind not in ENTRIES:
        raise Refusal(status, f"{prefix}invalid config entry kind: {kind}")


def read_entry(body: Any) -> Entry:
    """
    Decode and normalize the body of a config write.

    Raises:
        Refusal: 400 for its form, 500 for its content.
    """
    kind = _kind(body)
    check_kind(kind, status=400, prefix="Bad request: Request decoding failed: ")
    entry = decode_entry(body, ENTRIES[kind])
    entry["Kind"] = kind
    if kind in _SINGLETONS:
        entry["Name"] = _SINGLETONS[kind]  # whatever it says: there is only one
    if not entry.get("Name"):
        raise Refusal(500, "Name is required")
    return entry


def _kind(body: Any) -> str:
    if not isinstance(body, dict):
        raise Refusal(400, "Bad request: Request decoding failed: the body is no object")
    found = [value for key, value in body.items() if key.lower() == "kind"]
    if not found:
        raise Refusal(
            400, "Bad request: Request decoding failed: Payload does not contain a kind/Kind key"
            " at the top level"
        )  # fmt: skip
    return str(found[0])


class ConfigEntries:
    """The entries of one datacenter; names are looked up in any case."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}
        self._flat: dict[str, tuple[Entry, list[dict[str, Any]]]] = {}

    def get(self, kind: str, name: str) -> Entry | None:
        """The entry, or None."""
        return self._entries.get((kind, name.lower()))

    def of_kind(self, kind: str) -> list[Entry]:
        """All entries of *kind*, by name."""
        found = [entry for (own, _), entry in self._entries.items() if own == kind]
        return sorted(found, key=lambda entry: str(entry["Name"]))

    def intentions(self, destination: str) -> list[dict[str, Any]]:
        """
        The flattened intentions of one destination, none when it has no entry.

        Kept while the entry stands: every blocked query reads them at each write.
        """
        entry = self.get("service-intentions", destination)
        if entry is None:
            return []
        held = self._flat.get(destination.lower())
        if held is None or held[0] is not entry:
            held = self._flat[destination.lower()] = (entry, intentions.flatten(entry))
        return held[1]

    def all(self) -> list[Entry]:
        """Every entry: for the state file."""
        return list(self._entries.values())

    def load(self, entries: list[Entry]) -> None:
        """Take over what `all` gave."""
        self._entries = {(entry["Kind"], entry["Name"].lower()): entry for entry in entries}

    def protocol(self, service: str) -> str:
        """The protocol of *service*. Source: reference 5.3."""
        own = self.get("service-defaults", service)
        if own and own.get("Protocol"):
            return str(own["Protocol"]).lower()
        shared = self.get("proxy-defaults", "global")
        config = (shared or {}).get("Config") or {}
        return str(config.get("protocol") or "tcp").lower()

    def prepare(self, entry: Entry) -> Entry | None:
        """
        Check *entry* against its own rules and the other entries.

        Returns:
            What is to be stored, without indexes; None when that stands already.

        Raises:
            Refusal: a rule is broken; nothing was stored.
        """
        kind, name = entry["Kind"], entry["Name"]
        entry = {key: value for key, value in entry.items() if not key.endswith("Index")}
        if kind == "service-intentions":
            self._check_intentions(entry)
            entry = intentions.normalize_entry(entry)
        else:
            intentions.check_meta(entry.get("Meta", {}))
        ready = {"Kind": kind, "Name": name, **without_empty(entry)}
        if kind in ("service-defaults", "proxy-defaults"):
            for part in ("MeshGateway", "Expose"):  # Consul answers these even when empty
                ready[part] = entry.get(part) or {}
        if kind == "service-intentions":
            _intentions_fit(self, ready)  # nothing else depends on it: cheap with thousands
        else:
            self._check_graph({**self._entries, (kind, name.lower()): ready})
        old = self.get(kind, name)
        return None if old is not None and _content(old) == ready else ready

    def _check_intentions(self, entry: Entry) -> None:
        providers = {item["Name"] for item in self.of_kind("jwt-provider")}
        intentions.validate_entry(entry, providers=providers)

    def store(self, ready: Entry, index: int) -> Entry:
        """Store what `prepare` gave, at *index*."""
        kind, name = ready["Kind"], ready["Name"]
        old = self.get(kind, name)
        created = old["CreateIndex"] if old else index
        stored = {**ready, "CreateIndex": created, "ModifyIndex": index}
        self._entries[(kind, name.lower())] = stored
        return stored

    def check_removal(self, kind: str, name: str) -> None:
        """
        Check whether the entry may go.

        Raises:
            Refusal: another entry needs it.
        """
        if kind == "service-intentions":
            return
        left = {key: item for key, item in self._entries.items() if key != (kind, name.lower())}
        if kind == "jwt-provider":
            for entry in self.of_kind("service-intentions"):
                if name in intentions.jwt_providers(entry):
                    raise Refusal(
                        500, "cannot delete jwt provider config entry referenced by an intention."
                        f" Provider name: {name}, intention name: {entry['Name']}"
                    )  # fmt: skip
        self._check_graph(left)

    def remove(self, kind: str, name: str) -> bool:
        """Remove the entry; whether it was there."""
        if kind == "service-intentions":
            self._flat.pop(name.lower(), None)
        return self._entries.pop((kind, name.lower()), None) is not None

    def _check_graph(self, entries: dict[tuple[str, str], Entry]) -> None:
        trial = ConfigEntries()
        trial._entries = entries
        for (kind, _), entry in entries.items():
            check = _GRAPH_RULES.get(kind)
            if check:
                check(trial, entry)


def _content(entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if not key.endswith("Index")}


def _intentions_fit(entries: ConfigEntries, entry: Entry) -> None:
    if not any("Permissions" in source for source in entry["Sources"]):
        return
    protocol = entries.protocol(entry["Name"])
    if protocol not in intentions.HTTP_PROTOCOLS:
        raise Refusal(
            500, f"service {json.dumps(entry['Name'])} has protocol {json.dumps(protocol)}, which"
            " is incompatible with L7 intentions permissions"
        )  # fmt: skip


def _splitter_fits(entries: ConfigEntries, entry: Entry) -> None:
    total = sum(split.get("Weight") or 0 for split in entry.get("Splits", []))
    if abs(total - 100) >= 0.01:
        raise Refusal(500, f"the sum of all split weights must be 100, not {total:f}")
    _http_like(entries, entry)
    _chain_stands(entries, entry)


def _router_fits(entries: ConfigEntries, entry: Entry) -> None:
    _http_like(entries, entry)
    _chain_stands(entries, entry)


def _chain_stands(entries: ConfigEntries, entry: Entry) -> None:
    compile_chain(entry["Name"], "dc1", "", entries.get, entries.protocol)


def _http_like(entries: ConfigEntries, entry: Entry) -> None:
    protocol = entries.protocol(entry["Name"])
    if protocol not in intentions.HTTP_PROTOCOLS:
        raise Refusal(
            500, f"discovery chain {json.dumps(entry['Name'])} uses a protocol"
            f" {json.dumps(protocol)} that does not permit advanced routing or splitting behavior"
        )  # fmt: skip


_GRAPH_RULES = {
    "service-intentions": _intentions_fit,
    "service-splitter": _splitter_fits,
    "service-router": _router_fits,
    "service-resolver": _chain_stands,
}
