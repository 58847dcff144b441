"""
What ``mesh explain`` judges by: from a file, or from the live agent.

Owns the reading of both into one value. Knows nothing of verdicts.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...consul import entries, providers, wire
from ...consul.intentions import parse_entry, parse_intentions
from ...exceptions import AgentAnswerError, AgentRefusedError, ConfigError, IdentityError
from ...identity import parse_spiffe_id
from ...intentions import Intention, JwtProvider, Normalization
from ...intentions.model import WILDCARD, order
from ...jwks import KeysError, fetch_keys
from .. import api, rule_files
from ..status import default_policy

SOME_TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
"""Trust domain of callers where none is named."""


@dataclass(frozen=True, slots=True)
class Given:
    """
    Everything a verdict depends on, besides the request.

    Args:
        service: who is called.
        trust_domain: of the mesh.
        intentions: about this service, highest precedence first.
        default_allow: the default policy; ``None`` when it cannot be learnt.
        default_from: where that was learnt.
        protocol: of the service.
        providers: jwt-providers.
        normalization: of the mesh entry.
    """

    service: str
    trust_domain: str
    intentions: tuple[Intention, ...]
    default_allow: bool | None
    default_from: str
    protocol: str
    providers: tuple[JwtProvider, ...] = ()
    normalization: Normalization = Normalization()


def from_file(path: Path, service: str | None, trust_domain: str | None, source: str) -> Given:
    """
    Read a policy from a file.

    Args:
        path: the match endpoint's answer, a list of intentions in that form, or config entries;
            of the latter ``service-defaults``, ``proxy-defaults``, ``mesh`` and ``jwt-provider``
            count, too.
        service: who is called; where the file speaks of one service only, it need not be named.
        trust_domain: of the mesh; that of *source*, where this is a SPIFFE ID, unless given.

    Raises:
        ConfigError: the file cannot be read or says something else, or the service is not clear.
    """
    data = rule_files.read(path)
    listed = _entries(data)
    try:
        if listed is None:
            intentions = _flat(data, service)
        else:
            kind = (item for item in listed if item["Kind"] == "service-intentions")
            intentions = [read for item in kind for read in parse_entry(item)]
    except AgentAnswerError as error:
        raise ConfigError(f"{path}: {error}") from None
    name = service or os.environ.get("MESH_SERVICE") or _only_destination(path, intentions)
    # One that names no destination is about the service of whose file it is.
    about = [i for i in intentions if i.destination in (name, WILDCARD, "")]
    try:
        return _with_entries(
            Given(
                name,
                trust_domain or _trust_domain_of(source),
                tuple(sorted(about, key=order)),
                default_allow=False,
                default_from="assumed; say --default",
                protocol="http",
            ),
            listed or (),
        )
    except AgentAnswerError as error:
        raise ConfigError(f"{path}: {error}") from None


def _entries(data: Any) -> list[dict[str, Any]] | None:
    items: list[Any] = data if isinstance(data, list) else [data]
    if items and all(
        isinstance(item, dict) and isinstance(item.get("Kind"), str) for item in items
    ):
        return items
    return None


def _flat(data: object, service: str | None) -> Sequence[Intention]:
    if isinstance(data, Mapping):
        if service is not None and service not in data:
            raise ConfigError(f"the file speaks of {', '.join(data)}, not of {service}")
        lists = [data[service]] if service is not None else list(data.values())
        if not lists:
            raise ConfigError("the file names no service: the match endpoint's answer does")
        if len(lists) != 1:
            raise ConfigError(f"the file speaks of {', '.join(data)}: say --service")
        data = lists[0]
    return parse_intentions(data)


def _only_destination(path: Path, intentions: Iterable[Intention]) -> str:
    found = {i.destination for i in intentions} - {WILDCARD, ""}
    if len(found) == 1:
        return found.pop()
    if not found:
        return "the service"
    raise ConfigError(f"{path} speaks of {', '.join(sorted(found))}: say --service")


def _trust_domain_of(source: str) -> str:
    try:
        return parse_spiffe_id(source).trust_domain
    except IdentityError:
        return SOME_TRUST_DOMAIN


def _with_entries(policy: Given, listed: Iterable[dict[str, Any]]) -> Given:
    """Honour the other entries of a file of config entries."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for item in listed:
        by_kind.setdefault(item["Kind"], []).append(item)
    own = next((e for e in by_kind.get("service-defaults", ()) if _named(e, policy.service)), None)
    shared = next(iter(by_kind.get("proxy-defaults", ())), None)
    if own is not None or shared is not None:
        policy = replace(policy, protocol=entries.parse_protocol(own, shared))
    if "mesh" in by_kind:
        policy = replace(policy, normalization=entries.parse_normalization(by_kind["mesh"][0]))
    return replace(policy, providers=_providers(by_kind.get("jwt-provider", ())))


def _named(entry: Mapping[str, Any], service: str) -> bool:
    return str(entry.get("Name", "")).lower() == service.lower()


def from_agent(agent: str | None, service: str | None, *, ask_default: bool = True) -> Given:
    """
    Ask the live agent for everything a verdict about *service* depends on.

    Raises:
        ConfigError: no service is named.
        AgentError: no answer.
    """
    name = service or os.environ.get("MESH_SERVICE")
    if not name:
        raise ConfigError("who is called? say --service, or set MESH_SERVICE")
    with api.connect(agent) as connection:
        question = wire.match_question(name)
        answer = connection.get(question.path, **question.params)
        intentions = parse_intentions(answer.get(name) if isinstance(answer, dict) else answer)
        trust_domain = wire.parse_roots(connection.get(wire.roots_question().path)).trust_domain
        default = _ask_default(connection, trust_domain) if ask_default else None
        own = _entry(connection, "service-defaults", name)
        shared = _entry(connection, "proxy-defaults", "global")
        wanted = sorted({demand.provider for i in intentions for demand in _demands(i)})
        found = [_entry(connection, "jwt-provider", provider) for provider in wanted]
        return Given(
            name,
            trust_domain,
            tuple(sorted(intentions, key=order)),
            default_allow=default,
            default_from="of this Consul" if default is not None else "cannot be learnt",
            protocol=entries.parse_protocol(own, shared),
            providers=_providers(filter(None, found)),
            normalization=entries.parse_normalization(_entry(connection, "mesh", "mesh")),
        )


def _ask_default(connection: api.AgentApi, trust_domain: str) -> bool | None:
    try:
        known = wire.parse_self_default(connection.get(wire.self_question().path))
    except AgentRefusedError:
        known = None
    if known is not None:
        return known
    return {"allow": True, "deny": False}.get(default_policy(connection, trust_domain))


def _entry(connection: api.AgentApi, kind: str, name: str) -> dict[str, Any] | None:
    question = wire.entry_question(kind, name)
    try:
        found = connection.get(question.path)
    except api.NoSuchThingError:
        return None
    except api.RejectedError as error:
        if question.nothing and question.nothing in str(error):
            return None
        raise
    return found if isinstance(found, dict) else None


def _demands(intention: Intention) -> Iterable[Any]:
    yield from intention.jwt
    for permission in intention.permissions:
        yield from permission.jwt


def override(
    policy: Given,
    *,
    default: str | None,
    protocol: str | None,
    providers: tuple[JwtProvider, ...] | None,
    normalization: Normalization | None,
) -> Given:
    """Let options win over what file or agent say."""
    if default is not None:
        policy = replace(policy, default_allow=default == "allow", default_from="as --default says")
    if protocol is not None:
        policy = replace(policy, protocol=protocol.lower())
    if providers is not None:
        policy = replace(policy, providers=providers)
    return policy if normalization is None else replace(policy, normalization=normalization)


def read_normalization(path: Path | None) -> Normalization | None:
    """
    Read the mesh entry of a file; ``None`` when no file is given.

    Raises:
        ConfigError: the file cannot be read or holds something else.
    """
    if path is None:
        return None
    entry = rule_files.read(path)
    if (
        not isinstance(entry, dict)
        or entry.get("Kind", "mesh" if "HTTP" in entry else "") != "mesh"
    ):
        raise ConfigError(f"{path}: a config entry of the kind mesh is wanted, as a JSON object")
    return entries.parse_normalization(entry)


def read_providers(path: Path | None) -> tuple[JwtProvider, ...] | None:
    """
    Read the jwt-providers of a file: an entry, a list of entries, or a table of them by name.

    Remote keys are fetched once; those that cannot be are told on standard error.

    Returns:
        ``None`` when no file is given.

    Raises:
        ConfigError: the file cannot be read or holds something else.
    """
    if path is None:
        return None
    data = rule_files.read(path)
    if isinstance(data, dict) and "Issuer" not in data and "Name" not in data:
        data = [{"Name": name, **_table(path, value)} for name, value in data.items()]
    try:
        return _providers(_table(path, i) for i in (data if isinstance(data, list) else [data]))
    except AgentAnswerError as error:
        raise ConfigError(f"{path}: {error}") from None


def _table(path: Path, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: jwt-provider entries are wanted, as JSON objects")
    return value


def _providers(items: Iterable[Mapping[str, Any]]) -> tuple[JwtProvider, ...]:
    return tuple(_fetched(providers.parse_provider(_sealed(item))) for item in items)


def _sealed(item: Mapping[str, Any]) -> dict[str, Any]:
    """Take keys that a person wrote as plain JSON: Consul wants base64."""
    keys = item.get("JSONWebKeySet")
    local = keys.get("Local") if isinstance(keys, dict) else None
    jwks = local.get("JWKS") if isinstance(local, dict) else None
    if isinstance(jwks, dict):
        jwks = json.dumps(jwks)
    if not isinstance(jwks, str) or not jwks.lstrip().startswith("{"):
        return dict(item)
    sealed = base64.b64encode(jwks.encode()).decode()
    return {**item, "JSONWebKeySet": {"Local": {"JWKS": sealed}}}


def _fetched(entry: providers.ProviderEntry) -> JwtProvider:
    if entry.source is None:
        return entry.provider
    try:
        return replace(entry.provider, keys=asyncio.run(fetch_keys(entry.source)))
    except KeysError as error:
        print(f"mesh: keys of {entry.provider.name}: {error}", file=sys.stderr)
        return entry.provider
