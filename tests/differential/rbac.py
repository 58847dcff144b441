"""
Intentions to Envoy's RBAC, the way Consul 1.21 compiles them.

A second, independent reading of the match endpoint's JSON: shares no code with the engine it
checks. Source: reference 5.2 to 5.4.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_PATHS = {"PathExact": "exact", "PathPrefix": "prefix", "PathRegex": "safe_regex"}
_TESTS = ("Exact", "Prefix", "Suffix", "Contains")


def network_filter(intentions: list[Json], default_allow: bool, trust_domain: str) -> Json:
    """Compile for a tcp service: one policy of principals; permissions count as deny."""
    rules = _rules([_as_layer4(item) for item in _sorted(intentions)], default_allow, trust_domain)
    return _filter("network", rules, default_allow)


def http_filter(
    intentions: list[Json],
    default_allow: bool,
    trust_domain: str,
    issuers: dict[str, str] | None = None,
) -> Json:
    """
    Compile for an http service.

    Args:
        issuers: issuer of each jwt-provider by its name.
    """
    rules = _rules(_sorted(intentions), default_allow, trust_domain, issuers or {})
    return _filter("http", rules, default_allow)


def _filter(kind: str, policies: Json, default_allow: bool) -> Json:
    rules: Json = {"action": "DENY" if default_allow else "ALLOW"}
    if policies:
        rules["policies"] = policies
    config: Json = {
        "@type": f"type.googleapis.com/envoy.extensions.filters.{kind}.rbac.v3.RBAC",
        "rules": rules,
    }
    if kind == "network":
        config["stat_prefix"] = "connect_authz"
    return {"name": f"envoy.filters.{kind}.rbac", "typed_config": config}


def _sorted(intentions: list[Json]) -> list[Json]:
    kept: dict[tuple[str, ...], Json] = {}
    for item in by_rank(intentions):
        if not item.get("SourcePeer"):  # no trust bundle is known: skipped
            kept.setdefault(_source(item), item)
    return list(kept.values())


def by_rank(intentions: list[Json]) -> list[Json]:
    """Sort as Consul does: by precedence, then by names."""
    return sorted(intentions, key=_rank)


def _rank(item: Json) -> tuple[Any, ...]:
    names = ("SourcePeer", "SourcePartition", "SourceNS", "SourceName")
    names += ("DestinationPartition", "DestinationNS", "DestinationName")
    return (-item["Precedence"], *(item.get(name, "") for name in names))


def _source(item: Json) -> tuple[str, str, str]:
    partition = item.get("SourcePartition") or "default"
    return (partition, item.get("SourceNS") or "default", item["SourceName"])


def _as_layer4(item: Json) -> Json:
    if not item.get("Permissions"):
        return {key: value for key, value in item.items() if key != "JWT"}
    kept = {key: value for key, value in item.items() if key not in ("JWT", "Permissions")}
    return {**kept, "Action": "deny"}


def _rules(
    items: list[Json],
    default_allow: bool,
    trust_domain: str,
    issuers: dict[str, str] | None = None,
) -> Json:
    default = "allow" if default_allow else "deny"
    layer4: list[Json] = []
    policies: Json = {}
    for place, item in enumerate(items):
        if item.get("Action") == default:
            continue
        above = [_source(other) for other in items[:place] if _covers(item, other)]
        principal = _principal(_source(item), above, trust_domain)
        if jwt := _jwt(item, "principal", issuers):
            principal = {"and_ids": {"ids": [principal, jwt]}}
        if not item.get("Permissions"):
            layer4.append(principal)
            continue
        permissions = _permissions(item["Permissions"], default, issuers)
        if permissions:
            name = f"consul-intentions-layer7-{len(policies)}"
            policies[name] = {"principals": [principal], "permissions": permissions}
    if layer4:
        policies["consul-intentions-layer4"] = {
            "principals": layer4,
            "permissions": [{"any": True}],
        }
    return policies


def _covers(broad: Json, narrow: Json) -> bool:
    """Tell whether *narrow*'s source is strictly more specific, and covered by *broad*'s."""
    (ap, ns, name), (ap2, ns2, name2) = _source(broad), _source(narrow)
    if (ns, name).count("*") <= (ns2, name2).count("*") or ap != ap2:
        return False
    return ns in (ns2, "*") and name in (name2, "*")


def _pattern(source: tuple[str, str, str], trust_domain: str) -> Json:
    partition, namespace, name = source
    ap = "" if partition == "default" else f"/ap/{partition}"
    ns = "[^/]+" if namespace == "*" else namespace
    svc = "[^/]+" if name == "*" else name
    regex = f"^spiffe://{trust_domain}{ap}/ns/{ns}/dc/[^/]+/svc/{svc}$"
    return {"authenticated": {"principal_name": {"safe_regex": {"regex": regex}}}}


def _principal(
    source: tuple[str, str, str], above: list[tuple[str, str, str]], trust_domain: str
) -> Json:
    own = _pattern(source, trust_domain)
    if not above:
        return own
    ids = [own, *({"not_id": _pattern(other, trust_domain)} for other in above)]
    return {"and_ids": {"ids": ids}}


def _permissions(items: list[Json], default: str, issuers: dict[str, str] | None) -> list[Json]:
    found = []
    for place, item in enumerate(items):
        if item["Action"] == default:
            continue
        rule = _permission(item)
        if above := [_permission(other) for other in items[:place]]:
            rules = [rule, *({"not_rule": other} for other in above)]
            rule = {"and_rules": {"rules": rules}}
        if jwt := _jwt(item, "permission", issuers):
            rule = {"and_rules": {"rules": [rule, jwt]}}
        found.append(rule)
    return found


def _permission(item: Json) -> Json:
    http = item.get("HTTP") or {}
    parts: list[Json] = []
    for key, test in _PATHS.items():
        if text := http.get(key):
            value = {"regex": text} if test == "safe_regex" else text
            parts.append({"url_path": {"path": {test: value}}})
    parts += [{"header": _header(header)} for header in http.get("Header") or ()]
    if methods := http.get("Methods"):
        regex = {"regex": "|".join(methods)}
        match = {"name": ":method", "string_match": {"safe_regex": regex}}
        parts.append({"header": match})
    if not parts:
        return {"any": True}
    return parts[0] if len(parts) == 1 else {"and_rules": {"rules": parts}}


def _header(header: Json) -> Json:
    match: Json = {"name": header["Name"]}
    if header.get("Regex"):
        match["string_match"] = {"safe_regex": {"regex": header["Regex"]}}
    elif header.get("Present"):
        match["present_match"] = True
    else:
        [test] = [test for test in _TESTS if header.get(test)]
        match["string_match"] = {test.lower(): header[test]}
        if header.get("IgnoreCase"):
            match["string_match"]["ignore_case"] = True
    if header.get("Invert"):
        match["invert_match"] = True
    return match


def _jwt(item: Json, kind: str, issuers: dict[str, str] | None) -> Json | None:
    """Demand a verified payload: any of the providers, all of its claims."""
    providers = (item.get("JWT") or {}).get("Providers") or ()
    if issuers is None or not providers:
        return None
    many = "or_ids" if kind == "principal" else "or_rules"
    every = "and_ids" if kind == "principal" else "and_rules"
    list_key = "ids" if kind == "principal" else "rules"
    options = []
    for provider in providers:
        payload = f"jwt_payload_{provider['Name']}"
        claims = [(["iss"], issuers[provider["Name"]])]
        claims += [(claim["Path"], claim["Value"]) for claim in provider.get("VerifyClaims") or ()]
        tests = [{"metadata": _metadata([payload, *path], value)} for path, value in claims]
        options.append(tests[0] if len(tests) == 1 else {every: {list_key: tests}})
    return options[0] if len(options) == 1 else {many: {list_key: options}}


def _metadata(path: list[str], value: str) -> Json:
    return {
        "filter": "envoy.filters.http.jwt_authn",
        "path": [{"key": key} for key in path],
        "value": {"string_match": {"exact": value}},
    }
