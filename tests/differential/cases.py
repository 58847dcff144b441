"""
Cases for the comparison with Envoy: random ones, the same for the same seed.

A case has the form that ``mesh explain --batch`` reads, so that any of them can be fed to it. Two
more keys: ``normalization`` is the mesh entry's ``RequestNormalization``, and ``{name}`` in the
request stands for the token of that name (see `tokens`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from . import tokens
from .words import (
    HOSTS,
    LINES,
    METHODS,
    NAMES,
    ODD_METHODS,
    PATHS,
    RULE_HEADERS,
    RULE_PATHS,
    RULE_REGEXES,
    RULE_SOURCES,
    RULE_VALUES,
    SOURCES,
    TARGETS,
    TRUST_DOMAIN,
    VALUES,
    Json,
)

_MADE_UP = ("x-forwarded-client-cert", "x-request-id")
"""Headers to which the proxy gives values that nobody can foresee."""

_URI_PIECES = "/ // %2f . .. * api /svc/api /ns/default /ap/part ? # :80 @ - A ~ + ; [ $ |".split()

_PIECES = (
    "/ / . .. ; \\ % %2e %2E %2f %5C %61 %25 %2 %zz ? a admin v1 = ~ { %7e ;x // %00 # @".split()
)


def cases(seed: int, policies: int, requests: int) -> Iterator[Json]:
    """
    Make random cases.

    Args:
        seed: equal seeds, equal cases.
        policies: how many policies.
        requests: how many requests to each.
    """
    rnd = random.Random(seed)
    for number in range(policies):
        policy = _policy(rnd)
        for place in range(requests):
            yield {
                "id": f"{seed}-{number}-{place}",
                **policy,
                "source_uri": _source(rnd),
                "request": _request(rnd, "JWT" in str(policy["intentions"])),
            }


def _source(rnd: random.Random) -> str:
    uri = rnd.choice(SOURCES[:5] if rnd.random() < 0.6 else SOURCES)
    if rnd.random() < 0.04:
        place = rnd.randrange(len("spiffe://"), len(uri) + 1)
        uri = uri[:place] + rnd.choice(_URI_PIECES) + uri[place + rnd.choice((0, 0, 1)) :]
    return uri


def _policy(rnd: random.Random) -> Json:
    tcp = rnd.random() < 0.1
    jwt = rnd.random() < 0.2
    items = [_intention(rnd, tcp, jwt) for _ in range(rnd.choice((0, 1, 1, 1, 2, 2, 3, 4)))]
    unique = {
        (i["SourceName"], i["SourceNS"], i.get("SourcePartition"), i["DestinationName"]): i
        for i in items
    }
    return {
        "intentions": list(unique.values()),
        "default_allow": rnd.random() < 0.5,
        "protocol": "tcp" if tcp else rnd.choice(("http", "http", "http", "http2", "grpc")),
        "trust_domain": TRUST_DOMAIN,
        "normalization": _normalization(rnd) if rnd.random() < 0.3 else {},
    }


def _normalization(rnd: random.Random) -> Json:
    found: Json = {}
    if rnd.random() < 0.4:
        found["InsecureDisablePathNormalization"] = True
    if rnd.random() < 0.5:
        found["MergeSlashes"] = True
    slashes = ("KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD")
    if rnd.random() < 0.6:
        found["PathWithEscapedSlashesAction"] = rnd.choice(slashes)
    if rnd.random() < 0.5:
        found["HeadersWithUnderscoresAction"] = rnd.choice(
            ("ALLOW", "REJECT_REQUEST", "DROP_HEADER")
        )
    return found


def _intention(rnd: random.Random, tcp: bool, jwt: bool) -> Json:
    name = rnd.choice(RULE_SOURCES)
    namespace = "default"
    if rnd.random() < 0.12:
        namespace = "*" if name == "*" and rnd.random() < 0.5 else "team"
    destination = rnd.choice(("web", "web", "web", "*"))
    item: Json = {
        "SourceNS": namespace,
        "SourceName": name,
        "DestinationNS": "default",
        "DestinationName": destination,
        "SourceType": "consul",
        "Precedence": _precedence(name, namespace, destination),
        "CreateIndex": 1,
        "ModifyIndex": 2,
    }
    if rnd.random() < 0.05:
        item["SourcePartition"] = rnd.choice(("part", "part", "Part"))
    if rnd.random() < 0.06:
        item["Precedence"] = rnd.randrange(1, 10)  # of an agent that ranks by other rules
    if rnd.random() < 0.04:
        item["SourcePeer"] = "cluster-02"
    if jwt and rnd.random() < 0.5:
        item["JWT"] = _demand(rnd)
    if destination == "*" or rnd.random() < (0.8 if tcp else 0.25):
        item["Action"] = rnd.choice(("allow", "deny"))
    else:
        many = rnd.choice((1, 1, 1, 2, 2, 2, 3, 5, 5, 40))
        item["Permissions"] = [_permission(rnd, jwt) for _ in range(many)]
    return item


def _precedence(name: str, namespace: str, destination: str) -> int:
    source = 0 if namespace == "*" else 1 if name == "*" else 2
    return (6 if destination == "*" else 9) - (2 - source)


def _demand(rnd: random.Random) -> Json:
    providers = []
    for name in rnd.sample(sorted(tokens.PROVIDERS), rnd.choice((1, 1, 2))):
        provider: Json = {"Name": name}
        if rnd.random() < 0.5:
            claims = rnd.sample(tokens.CLAIMS, rnd.choice((1, 1, 2)))
            provider["VerifyClaims"] = [{"Path": path, "Value": value} for path, value in claims]
        providers.append(provider)
    return {"Providers": providers}


def _permission(rnd: random.Random, jwt: bool) -> Json:
    http: Json = {}
    if rnd.random() < 0.7:
        http.update(rnd.choice(RULE_PATHS))
    if rnd.random() < 0.25:
        methods = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PATCH")
        http["Methods"] = rnd.sample(methods, rnd.choice((1, 2, 3)))
    if rnd.random() < 0.45 or not http:
        http["Header"] = [_header(rnd) for _ in range(rnd.choice((1, 1, 1, 2)))]
        if rnd.random() < 0.15:  # several of one name
            again = {**_header(rnd), "Name": http["Header"][0]["Name"].upper()}
            if again["Name"].lower() not in _MADE_UP:
                http["Header"].append(again)
    permission: Json = {"Action": rnd.choice(("allow", "deny")), "HTTP": http}
    if jwt and rnd.random() < 0.3:
        permission["JWT"] = _demand(rnd)
    return permission


def _header(rnd: random.Random) -> Json:
    name = rnd.choice(RULE_HEADERS)
    test = rnd.choice(("Present", "Exact", "Exact", "Prefix", "Suffix", "Contains", "Regex"))
    if name in _MADE_UP:
        test = rnd.choice(("Present", "Exact"))
    value: object = rnd.choice(RULE_VALUES)
    if test == "Present":
        value = True
    elif test == "Regex":
        value = rnd.choice(RULE_REGEXES)
    header: Json = {"Name": name, test: value}
    if rnd.random() < 0.3:
        header["Invert"] = True
    if test not in ("Present", "Regex") and rnd.random() < 0.25:
        header["IgnoreCase"] = True
    return header


def _request(rnd: random.Random, jwt: bool) -> Json:
    target = rnd.choice(PATHS if rnd.random() < 0.75 else TARGETS)
    if rnd.random() < 0.12:
        target = _mutated(rnd, target)
    headers = [("Host", rnd.choice(HOSTS))] if rnd.random() < 0.98 else []
    for _ in range(rnd.choice((0, 0, 1, 1, 2, 3))):
        headers.append((rnd.choice(NAMES), rnd.choice(VALUES).encode().decode("latin-1")))
    for _ in range(rnd.choice((0, 0, 0, 1, 1, 2, 3))):
        headers.append(rnd.choice(LINES))
    if jwt:
        target = _with_tokens(rnd, target, headers)
    rnd.shuffle(headers)
    odd = rnd.random() < 0.04
    return {
        "method": rnd.choice(ODD_METHODS if odd else METHODS),
        "target": target,
        "headers": [list(pair) for pair in headers],
    }


def _with_tokens(rnd: random.Random, target: str, headers: list[tuple[str, str]]) -> str:
    for _ in range(rnd.choice((0, 1, 1, 1, 2))):
        good = rnd.random() < 0.5
        token = rnd.choice(tokens.GOOD if good else sorted(tokens.NAMES))
        place = rnd.choice(tokens.PLACES)
        text = place[1].replace("TOKEN", "{" + token + "}")
        if place[0] == "query":
            target += ("&" if "?" in target else "?") + text
        else:
            headers.append((place[0], text))
    return target


def _mutated(rnd: random.Random, target: str) -> str:
    place = rnd.randrange(len(target) + 1)
    return target[:place] + rnd.choice(_PIECES) + target[place:]
