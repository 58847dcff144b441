"""
Intentions as commands write them, on every Consul from 1.8 on.

Owns the choice between Consul's two ways: by name (``exact``, since 1.9) and by UUID (before it).
Knows the shapes of what is written, not what the rules mean.

Source: Consul HTTP API, "Intentions" and "Config" (reference 4.3 to 4.5).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from ..exceptions import AgentAnswerError
from .api import AgentApi, NoSuchThingError, RejectedError

_LIST = "/v1/connect/intentions"
_EXACT = "/v1/connect/intentions/exact"
_CONFIG = "/v1/config"


class NotOfferedError(RejectedError):
    """This version of Consul has no such thing."""


class Rules:
    """
    The intentions of the cluster behind one agent.

    Args:
        api: the agent.
    """

    def __init__(self, api: AgentApi) -> None:
        self._api = api
        self._by_name: bool | None = None

    def by_name(self) -> bool:
        """Tell whether the agent writes intentions by name, and so knows L7 permissions."""
        if self._by_name is None:
            self._by_name = self._probe()
        return self._by_name

    def _probe(self) -> bool:
        # Before 1.9 the word "exact" is taken for an intention's UUID, and found too short.
        try:
            self._api.get(_EXACT, source=f"probe-{uuid.uuid4().hex}", destination="probe")
        except NoSuchThingError:
            return True
        except RejectedError as error:
            if "UUID" in str(error):
                return False
            raise
        return True

    def all(self) -> list[dict[str, Any]]:
        """Every intention the token may read, highest precedence first."""
        answer = self._api.get(_LIST)
        if not isinstance(answer, list):
            raise AgentAnswerError("its list of intentions is not a list")
        return [item for item in answer if isinstance(item, dict)]

    def find(self, source: str, destination: str) -> dict[str, Any] | None:
        """The intention of exactly this pair, or ``None``."""
        for item in self.all():
            if (item.get("SourceName"), item.get("DestinationName")) == (source, destination):
                return item
        return None

    def write(self, source: str, destination: str, rule: dict[str, Any]) -> None:
        """
        Create or replace the intention of one pair.

        Args:
            source: name of who calls, or ``*``.
            destination: name of who is called, or ``*``.
            rule: ``{"Action": ...}`` or ``{"Permissions": [...]}``, ``Description`` if wanted.

        Raises:
            NotOfferedError: permissions on a Consul that has none.
            RejectedError: the agent finds the rule wrong.
        """
        if self.by_name():
            self._put(_EXACT, rule, source=source, destination=destination)
            return
        if "Permissions" in rule:
            raise NotOfferedError("this Consul has no L7 permissions (they came with 1.9)")
        body = {"SourceName": source, "DestinationName": destination, "SourceType": "consul"} | rule
        if found := self.find(source, destination):
            self._api.put(f"{_LIST}/{found['ID']}", body)
        else:
            self._api.call("POST", _LIST, body)

    def delete(self, source: str, destination: str) -> bool:
        """Delete the intention of one pair; tell whether there was one."""
        found = self.find(source, destination)
        if found is None:
            return False
        if self.by_name():
            self._api.call("DELETE", _EXACT, source=source, destination=destination)
        else:
            self._api.call("DELETE", f"{_LIST}/{found['ID']}")
        return True

    def check(self, source: str, destination: str) -> bool:
        """
        Ask the agent whether *source* may connect to *destination*.

        L7 permissions need a request to be judged, so the agent answers no for those.
        """
        answer = self._api.get(f"{_LIST}/check", source=source, destination=destination)
        if not isinstance(answer, dict) or not isinstance(answer.get("Allowed"), bool):
            raise AgentAnswerError("its answer to check has no Allowed")
        return bool(answer["Allowed"])

    def write_entry(self, entry: dict[str, Any]) -> None:
        """
        Write one config entry: ``service-intentions``, ``service-defaults`` or another kind.

        On a Consul before 1.9 the sources of a ``service-intentions`` entry are written one by one.
        """
        if entry.get("Kind") == "service-intentions" and not self.by_name():
            for source in _sources(entry):
                self.write(source["Name"], str(entry["Name"]), _rule(source))
            return
        self._put(_CONFIG, entry)

    def _put(self, path: str, body: object, **query: str) -> None:
        # What is no Consul may answer 200 to anything: nothing was written there.
        if self._api.put(path, body, **query) is not True:
            raise AgentAnswerError(f"PUT {path}: not confirmed")

    def delete_entry(self, kind: str, name: str) -> None:
        """Delete one config entry; none is fine."""
        self._api.call("DELETE", f"{_CONFIG}/{kind}/{quote(name, safe='')}")


def _sources(entry: dict[str, Any]) -> Sequence[dict[str, Any]]:
    sources = entry.get("Sources")
    return sources if isinstance(sources, list) else ()


def _rule(source: dict[str, Any]) -> dict[str, Any]:
    return {key: source[key] for key in ("Action", "Permissions", "Description") if key in source}
