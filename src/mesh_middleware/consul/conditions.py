"""
All config entries about a service, read together into what a policy is made under.

Owns the order of reading; what one entry says is read in `entries` and `providers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..exceptions import AgentAnswerError
from ..snapshot import Conditions
from .entries import parse_normalization, parse_protocol

if TYPE_CHECKING:
    from ..intentions.jwt import KeySet
    from .providers import KeySource


@dataclass(frozen=True, slots=True)
class ReadEntries:
    """
    What the entries say together.

    Args:
        conditions: what a policy is made under.
        sources: where the keys of which provider are to be read.
        unread: providers that cannot be read, and why: none of their tokens counts.
    """

    conditions: Conditions
    sources: Mapping[str, KeySource]
    unread: Mapping[str, str]


def parse_conditions(entries: Mapping[str, object], keys: Mapping[str, KeySet]) -> ReadEntries:
    """
    Read all entries that say how a service is judged.

    Args:
        entries: ``service-defaults`` of the service, ``proxy-defaults``, ``mesh``, and
            ``jwt-provider <name>``; ``None`` for those that do not exist.
        keys: read elsewhere, by provider.

    Raises:
        AgentAnswerError: protocol or normalization cannot be read.
    """
    providers, sources, unread = [], {}, {}
    withheld: list[str] = []
    for key, entry in sorted(entries.items()):
        kind, _, name = key.partition(" ")
        if kind != "jwt-provider" or entry is None:
            continue
        # Most services have none, and all of them start: this loads what tokens take.
        from .providers import forward_header, parse_provider

        try:
            read = parse_provider(entry)
        except AgentAnswerError as error:
            unread[name] = str(error)
            withheld += forward_header(entry)
            continue
        provider = read.provider
        if read.source is not None:
            sources[name] = read.source
            provider = replace(provider, keys=keys.get(name))
        providers.append(replace(provider, name=name))
    conditions = Conditions(
        parse_protocol(entries.get("service-defaults"), entries.get("proxy-defaults")),
        parse_normalization(entries.get("mesh")),
        tuple(providers),
        tuple(withheld),
    )
    return ReadEntries(conditions, sources, unread)
