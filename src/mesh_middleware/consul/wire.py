"""
Consul's JSON to our values; every path, header and query name stands here.

Owns the shapes of roots, leaf, default policy and registration. Intentions are read in
`mesh_middleware.consul.intentions`, instances of a service in `mesh_middleware.resolve`.
Sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ..certificates import KeyPair, Roots, read_leaf, read_root
from ..config import INSTANCE_KEY, Settings
from ..exceptions import AgentAnswerError, CertificateError, IdentityError
from ..identity import TrustDomain

INDEX = "x-consul-index"
DEFAULT_POLICY = "x-consul-default-acl-policy"
TOKEN = "X-Consul-Token"
REAP_AFTER = "1m"
"""How long a critical instance stays listed; Consul's own minimum."""

_DEFAULT_REASONS = (
    "Default behavior configured by ACLs",
    "Default intention policy",
    "ACLs disabled, access is allowed by default",
)


@dataclass(frozen=True, slots=True)
class Question:
    """
    One request to the agent.

    Args:
        method: HTTP method.
        path: escaped path.
        params: query parameters.
        body: JSON value to send, or ``None``.
        needs: ACL permission the request wants, for the message when it is refused.
        nothing: words of an error that means there is no such thing.
        raw: whether the JSON of the answer is handed on as it is, to be read in pieces.
    """

    path: str
    needs: str
    method: str = "GET"
    params: Mapping[str, str] = field(default_factory=dict)
    body: Any = field(default=None, repr=False)
    nothing: str = ""
    raw: bool = False


def roots_question() -> Question:
    """Ask for the CA roots (no permission needed)."""
    return Question("/v1/agent/connect/ca/roots", "nothing")


def leaf_question(service: str) -> Question:
    """Ask for the leaf of *service*."""
    return Question(
        f"/v1/agent/connect/ca/leaf/{quote(service, safe='')}", f'service:write on "{service}"'
    )


def match_question(service: str) -> Question:
    """Ask for the intentions whose destination is *service*."""
    return Question(
        "/v1/connect/intentions/match",
        f'intentions:read on "{service}" (service:read or write implies it)',
        params={"by": "destination", "name": service},
        raw=True,
    )


def intentions_question() -> Question:
    """Ask for the list of all intentions: its index serves agents whose match has none."""
    return Question("/v1/connect/intentions", "intentions:read", raw=True)


def entry_question(kind: str, name: str) -> Question:
    """Ask for one config entry; agents that do not know the kind have none of it."""
    needs = f'service:read on "{name}"' if kind == "service-defaults" else "any service:write"
    return Question(
        f"/v1/config/{kind}/{quote(name, safe='')}",
        needs,
        nothing="invalid config entry kind",
    )


def health_question(
    service: str, datacenter: str | None, *, namespace: str = "default", partition: str = "default"
) -> Question:
    """
    Ask for the instances of *service* that speak Connect, the critical ones included.

    ``passing`` would leave out those with a warning, whose weight Consul has a setting for.
    """
    params = {"dc": datacenter} if datacenter else {}
    # Only Consul Enterprise knows the two; others refuse even their defaults (reference 11).
    params |= {"ns": namespace} if namespace != "default" else {}
    params |= {"partition": partition} if partition != "default" else {}
    return Question(
        f"/v1/health/connect/{quote(service, safe='')}",
        f'service:read on "{service}" and node:read',
        params=params,
    )


def query_question(query: str, datacenter: str | None) -> Question:
    """Ask for the instances a prepared query finds, those that speak Connect."""
    return Question(
        f"/v1/query/{quote(query, safe='')}/execute",
        f'query:read on "{query}", service:read and node:read',
        params={"connect": "true"} | ({"dc": datacenter} if datacenter else {}),
    )


def self_question() -> Question:
    """Ask the agent about itself: its configured default policies, its datacenter."""
    return Question("/v1/agent/self", "agent:read")


def authorize_question(service: str, uri: str) -> Question:
    """Ask whether *uri* may call *service*, by intentions alone."""
    return Question(
        "/v1/agent/connect/authorize",
        f'service:write on "{service}"',
        "POST",
        body={"Target": service, "ClientCertURI": uri, "ClientCertSerial": "00"},
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """
    An instance as it is registered with the agent.

    Args:
        owner: token of who registered it; empty where that was somebody who sets none.
        address: empty for the agent's own.
        port: of the service.
    """

    owner: str
    address: str
    port: int


def instance_question(settings: Settings) -> Question:
    """Read this instance's registration; 404 where there is none."""
    return Question(
        f"/v1/agent/service/{quote(settings.instance_id, safe='')}",
        f'service:read on "{settings.service}"',
    )


def checks_question(settings: Settings) -> Question:
    """Read all checks of the agent."""
    return Question("/v1/agent/checks", f'service:read on "{settings.service}"')


def parse_instance(body: object) -> Entry:
    """
    Read one registration.

    Raises:
        AgentAnswerError: the shape is another one.
    """
    answer = _table(body, "a service")
    meta, address, port = answer.get("Meta"), answer.get("Address"), answer.get("Port")
    owner = meta.get(INSTANCE_KEY) if isinstance(meta, dict) else None
    return Entry(
        owner if isinstance(owner, str) else "",
        address if isinstance(address, str) else "",
        port if isinstance(port, int) else 0,
    )


def parse_alive(body: object, settings: Settings) -> bool:
    """
    Tell whether an instance lives: by the check that we register, else by any that it has.

    One that has no check lives. One in maintenance does, too: that is a check of its own.

    Raises:
        AgentAnswerError: the shape is another one.
    """
    checks = _table(body, "checks")
    ours = checks.get(check_id(settings))
    if isinstance(ours, dict):
        return ours.get("Status") != "critical"
    each = [_table(check, "a check") for check in checks.values()]
    states = [one.get("Status") for one in each if one.get("ServiceID") == settings.instance_id]
    return not states or any(state != "critical" for state in states)


def register_question(settings: Settings, owner: str = "") -> Question:
    """
    Register this instance as Connect-native, with a TTL check that starts critical.

    Args:
        owner: token that tells who registers it.
    """
    check = {
        "CheckID": check_id(settings),
        "Name": "mesh_middleware: certificate valid and policy known",
        "TTL": f"{settings.check_ttl:g}s",
        "DeregisterCriticalServiceAfter": REAP_AFTER,
    }
    body: dict[str, Any] = {
        "ID": settings.instance_id,
        "Name": settings.service,
        "Connect": {"Native": True},
        "Checks": [check],
    }
    if settings.port:
        body["Port"] = settings.port
    if settings.address:
        body["Address"] = settings.address
    if settings.tags:
        body["Tags"] = list(settings.tags)
    if settings.meta or owner:
        body["Meta"] = {**settings.meta, **({INSTANCE_KEY: owner} if owner else {})}
    return Question(
        "/v1/agent/service/register", f'service:write on "{settings.service}"', "PUT", body=body
    )


def deregister_question(settings: Settings) -> Question:
    """Take this instance away."""
    return Question(
        f"/v1/agent/service/deregister/{quote(settings.instance_id, safe='')}",
        f'service:write on "{settings.service}"',
        "PUT",
    )


def ttl_question(settings: Settings, status: str, output: str) -> Question:
    """
    Report the state of this instance's check.

    Args:
        status: ``passing``, ``warning`` or ``critical``.
        output: what people read beside it.
    """
    return Question(
        f"/v1/agent/check/update/{quote(check_id(settings), safe='')}",
        f'service:write on "{settings.service}"',
        "PUT",
        body={"Status": status, "Output": output},
    )


def check_id(settings: Settings) -> str:
    """Consul's ID of this instance's TTL check."""
    return f"mesh:{settings.instance_id}"


def parse_roots(body: object) -> Roots:
    """
    Read the CA roots: every root in the list, active or not, and no intermediate.

    Raises:
        AgentAnswerError: the shape is another one, or a certificate is unreadable.
    """
    answer = _table(body, "roots")
    try:
        trust_domain = TrustDomain(_text(answer, "TrustDomain").lower()).name
        listed = answer.get("Roots")
        if not isinstance(listed, list):
            raise AgentAnswerError("roots: Roots is no list")
        pems = tuple(read_root(_text(_table(root, "a root"), "RootCert")) for root in listed)
        return Roots(trust_domain, pems, _text(answer, "ActiveRootID"))
    except (IdentityError, CertificateError) as error:
        raise AgentAnswerError(f"roots: {error}") from None


def parse_leaf(body: object) -> KeyPair:
    """
    Read our leaf and its key.

    Raises:
        AgentAnswerError: the shape is another one, or the certificate breaks a rule. The message
            holds nothing of the key.
    """
    answer = _table(body, "leaf")
    try:
        leaf = read_leaf(_text(answer, "CertPEM"))
    except CertificateError as error:
        raise AgentAnswerError(f"leaf: {error}") from None
    uri = answer.get("ServiceURI")
    if uri is not None and uri != leaf.id.uri:
        raise AgentAnswerError(f"leaf: ServiceURI is {uri!r}, the certificate says {leaf.id.uri!r}")
    return KeyPair(leaf, _text(answer, "PrivateKeyPEM"))


def parse_self_default(body: object) -> bool | None:
    """
    Read the default policy from the agent's own settings.

    Returns:
        ``True`` for allow, ``False`` for deny, ``None`` when the answer does not tell.

    Source: reference 4.7; DebugConfig is documented as unstable, so its absence is no error.
    """
    debug = body.get("DebugConfig") if isinstance(body, Mapping) else None
    if not isinstance(debug, Mapping):
        return None
    policy = debug.get("DefaultIntentionPolicy") or debug.get("ACLDefaultPolicy")
    return {"allow": True, "deny": False}.get(policy) if isinstance(policy, str) else None


def parse_datacenter(body: object) -> str | None:
    """Read the agent's datacenter from its own settings."""
    config = body.get("Config") if isinstance(body, Mapping) else None
    name = config.get("Datacenter") if isinstance(config, Mapping) else None
    return name if isinstance(name, str) and name else None


def parse_probe(body: object, header: str | None) -> bool | None:
    """
    Read the default policy from an authorize answer about a source nobody knows.

    Args:
        body: the answer.
        header: value of ``X-Consul-Default-ACL-Policy``, or ``None``.

    Returns:
        ``True`` for allow, ``False`` for deny; ``None`` when a wildcard intention answered
        instead, or when verdict and header contradict each other.

    Source: reference 4.6 and 4.7.
    """
    answer = _table(body, "authorize")
    verdict, reason = answer.get("Authorized"), answer.get("Reason")
    if not isinstance(verdict, bool) or reason not in _DEFAULT_REASONS:
        return None
    if verdict and header == "deny" and reason != "Default intention policy":
        return None
    return verdict


def _table(body: object, what: str) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise AgentAnswerError(f"{what}: {no_object(body)}")
    return body


def no_object(body: object) -> str:
    """Say in JSON's words that *body* is no object."""
    kind = {type(None): "null", str: "text", list: "a list", bytes: "text"}.get(type(body))
    return f"a JSON object is expected, not {kind or type(body).__name__}"


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise AgentAnswerError(f"{key}: a text is expected, not {type(value).__name__}")
    return value
