"""
Cases written by hand: limits that random ones never reach, and disagreements found earlier.

Each of the latter once was a difference between Envoy and us; its comment says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .words import SOURCES, TRUST_DOMAIN, service

Json = dict[str, Any]
Pairs = list[tuple[str, str]]

HOST = ("Host", "web")


def intention(source: str = "api", destination: str = "web", **fields: Any) -> Json:
    """An intention as the match endpoint writes it; *allow* unless *fields* say otherwise."""
    exact = (destination != "*") * 3 + 6 - 2
    item: Json = {
        "SourceNS": "default",
        "SourceName": source,
        "DestinationNS": "default",
        "DestinationName": destination,
        "SourceType": "consul",
        "Precedence": exact + 1 + (source != "*"),
        **fields,
    }
    if "Permissions" not in item:
        item.setdefault("Action", "allow")
    return item


def permission(action: str = "allow", **http: Any) -> Json:
    """A permission; token demands are put to it by the caller."""
    return {"Action": action, "HTTP": http or {"PathPrefix": "/"}}


def header(name: str, **test: Any) -> Json:
    """A permission's only header criterion."""
    return {"Header": [{"Name": name, **test}]}


def case(
    name: str,
    intentions: list[Json],
    target: str = "/",
    headers: Pairs | None = None,
    *,
    default_allow: bool = False,
    method: str = "GET",
    source: str = service("api"),
    protocol: str = "http",
    normalization: Json | None = None,
) -> Json:
    """A case; a Host stands first unless *headers* are given with one."""
    pairs = headers or []
    if not any(key.lower() == "host" for key, _ in pairs):
        pairs = [HOST, *pairs]
    return {
        "id": name,
        "intentions": intentions,
        "default_allow": default_allow,
        "protocol": protocol,
        "trust_domain": TRUST_DOMAIN,
        "normalization": normalization or {},
        "source_uri": source,
        "request": {"method": method, "target": target, "headers": [list(p) for p in pairs]},
    }


def cases() -> Iterator[Json]:
    """List them all."""
    yield from _limits()
    yield from _found()
    yield from _tokens()
    yield from _pairs()


def _limits() -> Iterator[Json]:
    plain = [intention()]
    for count in (98, 99, 100, 101):
        lines = [(f"x-{n}", "1") for n in range(count)]
        yield case(f"{count} headers", plain, headers=lines)
        joined = [("Accept", "1") for _ in range(count)]
        yield case(f"{count} joined headers", plain, headers=joined)
    for size in (61_000, 61_300, 61_340, 61_390, 61_400, 61_410, 61_440, 62_000):
        yield case(f"a header of {size}", plain, headers=[("x-big", "a" * size)])
        yield case(f"a target of {size}", plain, "/" + "a" * size)
        yield case(f"a method with a query of {size}", plain, "/?" + "a" * size)
    for tokens in (1, 9, 10, 11):
        named = ",".join(f"x{n}" for n in range(tokens))
        yield case(f"connection names {tokens}", plain, headers=[("Connection", named)])
    for size in (254, 255, 256):
        pairs = [("Connection", "te"), ("TE", "a" * size)]
        yield case(f"te of {size}", plain, headers=pairs)
    long = [intention(Permissions=[permission("deny", PathPrefix="/admin")])]
    for depth in (10, 500, 2000):
        for up in ("../", "%2e%2e/", "..;/", "..%2f"):
            yield case(f"{up} {depth}", long, "/v1/" + up * depth + "admin", default_allow=True)


def _found() -> Iterator[Json]:
    sees_team = [intention(Permissions=[permission("deny", **header("x-team", Present=True))])]
    nominated = [("Upgrade", "h2c"), ("Connection", "upgrade, a,b,c,d,e,f,g,h,i,j")]
    # An ignored upgrade to h2c does not excuse what Connection names besides.
    yield case("h2c and ten names", sees_team, headers=nominated, default_allow=True)
    # To a forged certificate header Envoy appends its own.
    forged = [("X-Forwarded-Client-Cert", "admin")]
    for test in ("Exact", "Prefix", "Contains"):
        rule = permission(**header("x-forwarded-client-cert", **{test: "admin"}))
        yield case(f"xfcc {test}", [intention(Permissions=[rule])], headers=forged)
    # Parameters of dot segments are cut before the look for NUL.
    yield case("nul in a cut parameter", [], "/.;%00", default_allow=True)
    # A numbered zone in an absolute target, of which Envoy takes some.
    for zone in ("%25", "%2", "%", "%x", "%4294967296"):
        yield case(f"zone {zone}", [], f"http://[::1{zone}]/", default_allow=True)
    # A pattern behind the last rule that counts is left out, however bad it is.
    rules = [permission(PathExact="/v1"), permission("deny", PathRegex="(")]
    for target in ("/v1", "/admin"):
        yield case(f"a bad pattern left out {target}", [intention(Permissions=rules)], target)
    # A letter that is no ASCII, and whose lower case is: the name stays another one.
    for action in ("allow", "deny"):
        kelvin = permission(action, **header("x-\u212aey", Present=True))
        rules = [intention(Permissions=[kelvin])]
        for default_allow in (True, False):
            name = f"Kelvin {action} {default_allow}"
            yield case(name, rules, headers=[("x-key", "1")], default_allow=default_allow)
    # Letters of a partition count for Envoy; whom an upper-case one means, strict does not guess.
    for written in ("part", "Part", "Default"):
        for caller in ("", "part", "Part", "default"):
            for action in ("allow", "deny"):
                rules = [intention(SourcePartition=written, Action=action)]
                uri = service("api", partition=caller)
                for default_allow in (True, False):
                    name = f"partition {written} {caller} {action} {default_allow}"
                    yield case(name, rules, source=uri, default_allow=default_allow)
    # A pattern between the budgets of Envoy and ours.
    large = "/v1|" + "a{1000}b{1000}" * 60
    yield case("a large pattern", [intention(Permissions=[permission(PathRegex=large)])], "/v1")


def _tokens() -> Iterator[Json]:
    """Two providers that want one token: the first to verify it takes it away."""
    okta: Json = {"Providers": [{"Name": "okta"}]}
    sole: Json = {"Providers": [{"Name": "any"}]}
    bearer = [("Authorization", "Bearer {role-user}")]
    for order, (first, second) in enumerate(((okta, sole), (sole, okta))):
        both = [
            intention(Permissions=[{**permission(PathPrefix="/v1"), "JWT": first}]),
            intention("web", JWT=second),
        ]
        for source in ("api", "web"):
            uri = service(source)
            yield case(f"taken {order} {source}", both, "/v1", bearer, source=uri)
            query = "/v1?access_token={role-user}"
            yield case(f"taken by query {order} {source}", both, query, source=uri)
    sees = permission(**header("authorization", Present=True))
    for demand in (okta, sole, {"Providers": [{"Name": "keep"}]}):
        rules = [intention(JWT=demand, Permissions=[sees])]
        for text in ("Bearer {role-user}", "{role-user}", "{audience-https}", "Bearer x"):
            yield case(f"rule on the token's header {demand} {text}", rules, "/", [
                ("Authorization", text)
            ])  # fmt: skip


def _pairs() -> Iterator[Json]:
    """Every shape of two intentions in one cluster, both actions, both defaults."""
    shapes = [("api", "web"), ("*", "web"), ("api", "*"), ("*", "*")]
    verdicts: list[Json] = [
        {"Action": "allow"},
        {"Action": "deny"},
        {"Permissions": [permission("allow", PathPrefix="/v1")]},
        {"Permissions": [permission("deny", PathPrefix="/v1")]},
    ]
    for place, one in enumerate(shapes):
        for other in shapes[place + 1 :]:
            for first in verdicts[: 4 if one[1] == "web" else 2]:
                for second in verdicts[: 4 if other[1] == "web" else 2]:
                    for default_allow in (True, False):
                        rules = [intention(*one, **first), intention(*other, **second)]
                        for target in ("/v1", "/x"):
                            name = f"{one} {other} {target} {default_allow}"
                            yield case(name, rules, target, default_allow=default_allow)
    for default_allow in (True, False):
        for source in dict.fromkeys(SOURCES):
            for action in ("allow", "deny"):
                rules = [intention("*", "*", Action=action)]
                for protocol in ("http", "tcp"):
                    yield case(
                        f"{source} {action} {protocol}",
                        rules,
                        source=source,
                        default_allow=default_allow,
                        protocol=protocol,
                    )
