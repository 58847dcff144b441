"""
Cases for the comparison with Envoy: written ones, and random ones from a seed.

A case has the form that ``mesh explain --batch`` reads, so that any of them can be fed to it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

TRUST_DOMAIN = "9361e7cf-537e-691c-5263-92d523793c73.consul"
FOREIGN = "11111111-2222-3333-4444-555555555555.consul"
NEAR = TRUST_DOMAIN.replace(".", "x")


def service(
    name: str,
    *,
    namespace: str = "default",
    datacenter: str = "dc1",
    partition: str = "",
    trust_domain: str = TRUST_DOMAIN,
) -> str:
    """The SPIFFE ID of a service."""
    ap = f"/ap/{partition}" if partition else ""
    return f"spiffe://{trust_domain}{ap}/ns/{namespace}/dc/{datacenter}/svc/{name}"


SOURCES = [
    service("api"),
    service("api"),
    service("api"),
    service("web"),
    service("web"),
    service("other"),
    service("api", datacenter="dc2"),
    service("api.v1"),
    service("api-v1"),
    service("api", namespace="team"),
    service("web", namespace="team"),
    service("api", partition="part"),
    service("api", trust_domain=FOREIGN),
    service("api", trust_domain=NEAR),
    service("a%20b"),
    f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1",
    f"spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/node",
    f"spiffe://{TRUST_DOMAIN}/agent/server/dc/dc1",
]

PATHS = """
/ /admin /admin/ /admin/users /administrator /Admin /ADMIN //admin /admin// /./admin /admin/.
/x/../admin /x/%2e%2e/admin /x/.%2e/admin /x/%2E./admin /%61dmin /%61%64%6d%69%6e /%41dmin
/admin%2f /admin%2Fusers /%2fadmin /%2Fadmin /x%2f../admin /x%2f%2e%2e/admin /x/..%2fadmin
/%2561dmin /%252fadmin /admin%25 /admin;x=1 /admin;/users /x/..;/admin /x/..;p/admin
/x/%2e%2e;p/admin /;/admin /;x/admin /.;/admin /.;x/admin /x;y/../admin /\\admin /x\\..\\admin
/x/..\\admin /admin\\users /admin%5cusers /%5cadmin /x%5c..%5cadmin /admin? /admin?x=1
/admin?/../x /?/admin /v1?x=/admin /admin#x /#/admin /v1#/../admin /admin%23x /admin%3fx
/admin%00 /admin%00x /%00/admin /admin%20 /admin%09 /admin%0a /admin%0d%0a /admin+x /ad+min
/.//admin //x//../admin /x//../admin /x/y/../../admin /../admin /../../admin /%2e%2e/admin
/./././admin /x/./../admin /...//admin /.../admin /admin/... /admin/.. /admin/../ /admin/../v1
/v1 /v1/ /v1/users /v1/users/1 /v1/../admin /v1/..;/admin /v1/%2e%2e/admin /v1//admin /v1beta
/v1/admin /v1;x/admin /v1%2fadmin /v1/%2e%2e%2fadmin /v1/..%5cadmin /v1\\..\\admin /v1/x%2f..%2f
/a%20b /a%2520b /a%2Bb /caf%C3%A9 /caf%c3%a9 /%E2%82%AC /a%zzb /a% /a%2 /%2%61 /%%61dmin /%2%35
/~user /%7euser /%7Euser /a_b /a-b /a.b /a,b /a=b /a@b /a:b /a!b /a$b /a&b /a'b /a(b) /a*b
/a{b} /a|b /a^b /a`b /a<b> /a"b /a[b] /a%5Bb%5D
""".split()

TARGETS = [
    *PATHS,
    "*",
    "",
    "?x",
    "admin",
    "\\admin",
    "http://web/admin",
    "http://web",
    "https://web/admin",
    "HTTP://web/admin",
    "http://WEB:80/v1",
    "http://other/v1/users",
    "http://other:8080/admin?x=1",
    "http://u@web/admin",
    "http://u:p@web/v1",
    "http://[::1]/v1",
    "http://[::1]:8080/admin",
    "http://[::g]/v1",
    "http://web:99999/v1",
    "http://web:/v1",
    "http://we_b/v1",
    "http://web?x",
    "http://web#x",
    "http:///v1",
    "ftp://web/v1",
    "web:80",
    "//web/admin",
    "/http://web/admin",
    "/v1/\xe9",
    "/v1/\x7f",
    "/v1/ x",
    "/v1/\tx",
    "/v1/\x01",
    "/v1/\xff",
    "/v1?\xff",
    "/v1?x y",
    "/" + "a" * 3000,
    "/v1/" + "../" * 300 + "admin",
    "/v1/" + "%2e%2e/" * 200 + "admin",
    "/v1/" + "a/" * 400,
]

METHODS = ["GET"] * 12 + ["POST"] * 5 + ["PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE"]
ODD_METHODS = ["get", "Get", "FOO", "PROPFIND", "PURGE", "CONNECT", "M-SEARCH", "MSEARCH", "QUERY"]

NAMES = ["x-role"] * 6 + ["X-Role", "x_role", "x-team", "x-a", "X_Team"]
VALUES = (
    """
admin user guest Admin ADMIN admin,user user,admin adm administrator superadmin x 1 é
""".split()
    + ["", " admin", "admin ", "user, admin", "admin\tx", "ad min", "\xff", "a\xffb", '"admin"']
)

LINES: list[tuple[str, str]] = [
    ("Connection", "close"),
    ("Connection", "keep-alive"),
    ("Connection", "x-role"),
    ("Connection", "close, X-Role"),
    ("Connection", "keep-alive,x_role"),
    ("Connection", "x-team , x-a"),
    ("Connection", "upgrade"),
    ("Connection", "host"),
    ("Connection", "te"),
    ("Connection", "cookie, authorization"),
    ("Connection", "x-forwarded-for"),
    ("Connection", "x-forwarded-proto"),
    ("Connection", ":path"),
    ("Connection", "a,b,c,d,e,f,g,h,i"),
    ("Connection", "a,b,c,d,e,f,g,h,i,j"),
    ("Upgrade", "websocket"),
    ("Upgrade", "h2c"),
    ("Upgrade", "foo"),
    ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"),
    ("TE", "trailers"),
    ("TE", "gzip, trailers"),
    ("TE", "gzip"),
    ("Expect", "100-continue"),
    ("Expect", "other"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "x"),
    ("Transfer-Encoding", "identity"),
    ("Content-Length", "0"),
    ("Content-Length", "x"),
    ("Content-Length", "0, 0"),
    ("Authorization", "Bearer a"),
    ("Authorization", "Bearer b"),
    ("authorization", ""),
    ("Content-Type", "application/json"),
    ("Content-Type", "text/plain"),
    ("Accept", "text/html"),
    ("Accept", "*/*"),
    ("User-Agent", "curl/8"),
    ("User-Agent", "Mozilla/5.0 (X11, Linux)"),
    ("Cookie", "role=admin"),
    ("Cookie", "a=b"),
    ("Origin", "https://x"),
    ("X-Forwarded-For", "10.0.0.1"),
    ("X-Forwarded-For", "1.2.3.4"),
    ("X-Forwarded-Proto", "http"),
    ("X-Forwarded-Proto", "HTTPS"),
    ("X-Forwarded-Proto", ""),
    ("X-Forwarded-Host", "admin"),
    ("X-Request-Id", "admin"),
    ("X-Envoy-Internal", "true"),
    ("X-Envoy-Max-Retries", "3"),
    ("X-Envoy-Original-Path", "/admin"),
    ("X-Envoy-Foo", "admin"),
    ("Host", "other"),
    ("Host", ""),
    ("Forwarded", "for=1"),
    ("X-Bad Name", "1"),
    ("X-Bad\xe9", "1"),
    ("X-Role:", "admin"),
    ("X-Ctl", "a\x01b"),
    ("X-Ctl", "a\x7fb"),
    ("X-Cr", "a\rb"),
    ("x-role", "ad\rmin"),
]

HOSTS = ["web"] * 8 + ["WEB", "web:80", "web:8443", "other", "other.", "a,b", "", "we b", "we_b"]

RULE_PATHS: list[Json] = [
    *({"PathExact": path} for path in ("/", "/admin", "/admin", "/v1", "/v1/users", "/admin/")),
    *({"PathExact": path} for path in ("/a%20b", "/a b", "/caf%C3%A9", "/café", "/admin?x=1")),
    *(
        {"PathExact": path}
        for path in ("//admin", "/x/../admin", "/admin;x=1", "/%61dmin", "/a{b}")
    ),
    *({"PathPrefix": path} for path in ("/", "/", "/admin", "/admin", "/v1", "/v1/", "/x", "/a")),
    *({"PathPrefix": path} for path in ("//", "/a%20", "/v1/%2e", "/admin?", "/~", "/ADMIN")),
    *({"PathRegex": text} for text in ("/admin.*", "/(v1|v2)/.*", "/admin", "/a[^/]+", ".*")),
    *({"PathRegex": text} for text in ("(?i)/admin.*", "/v1|/admin", "/.*%2[fF].*", "[^?]*", "/.")),
    *({"PathRegex": text} for text in ("^/admin$", "/.*/users", "/v1/[0-9]+", "/\\w+", "/[^%]*")),
]

RULE_HEADERS = (
    NAMES
    + """
Host :authority :path :method :scheme cookie authorization Content-Type accept user-agent
connection upgrade te expect keep-alive transfer-encoding content-length x-forwarded-for
x-forwarded-proto x-request-id x-forwarded-client-cert x-envoy-internal x-envoy-max-retries
x-envoy-original-path x-envoy-foo http2-settings origin forwarded
""".split()
)

RULE_VALUES = (
    """
admin admin admin user web WEB web:80 other / /admin /admin?x=1 GET https http trailers websocket
h2c 100-continue other close curl/8 role=admin role=admin;a=b application/json 10.0.0.1 Bearer true
admin,user user,admin user,user x é
""".split()
    + ["Bearer a", "Bearer a,Bearer b", "text/html,*/*", "a=b", "0"]
)

RULE_REGEXES = ["admin", "adm.*", "(?i)admin", ".*", ".+", "[^,]*", "a.b", "ad.*|user", ".", "\\S*"]


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
                "source_uri": rnd.choice(SOURCES[:5] if rnd.random() < 0.6 else SOURCES),
                "request": _request(rnd),
            }


def _policy(rnd: random.Random) -> Json:
    tcp = rnd.random() < 0.12
    items = [_intention(rnd, tcp) for _ in range(rnd.choice((0, 1, 1, 1, 2, 2, 3, 4)))]
    unique = {
        (i["SourceName"], i["SourceNS"], i.get("SourcePartition"), i["DestinationName"]): i
        for i in items
    }
    return {
        "intentions": list(unique.values()),
        "default_allow": rnd.random() < 0.5,
        "protocol": "tcp" if tcp else rnd.choice(("http", "http", "http", "http2", "grpc")),
        "trust_domain": TRUST_DOMAIN,
    }


def _intention(rnd: random.Random, tcp: bool) -> Json:
    name = rnd.choice(("api", "api", "api", "web", "web", "*", "*", "other", "api.v1", "a b"))
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
        item["SourcePartition"] = "part"
    if rnd.random() < 0.04:
        item["SourcePeer"] = "cluster-02"
    if destination == "*" or rnd.random() < (0.8 if tcp else 0.25):
        item["Action"] = rnd.choice(("allow", "deny"))
    else:
        item["Permissions"] = [_permission(rnd) for _ in range(rnd.choice((1, 1, 2, 2, 3, 5)))]
    return item


def _precedence(name: str, namespace: str, destination: str) -> int:
    source = 0 if namespace == "*" else 1 if name == "*" else 2
    return (6 if destination == "*" else 9) - (2 - source)


def _permission(rnd: random.Random) -> Json:
    http: Json = {}
    if rnd.random() < 0.7:
        http.update(rnd.choice(RULE_PATHS))
    if rnd.random() < 0.25:
        methods = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PATCH")
        http["Methods"] = rnd.sample(methods, rnd.choice((1, 2, 3)))
    if rnd.random() < 0.45 or not http:
        http["Header"] = [_header(rnd) for _ in range(rnd.choice((1, 1, 1, 2)))]
    return {"Action": rnd.choice(("allow", "deny")), "HTTP": http}


_MADE_UP = ("x-forwarded-client-cert", "x-request-id")
"""Headers to which the proxy gives values that nobody can foresee."""


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


def _request(rnd: random.Random) -> Json:
    target = rnd.choice(PATHS if rnd.random() < 0.75 else TARGETS)
    if rnd.random() < 0.12:
        target = _mutated(rnd, target)
    headers = [("Host", rnd.choice(HOSTS))] if rnd.random() < 0.98 else []
    for _ in range(rnd.choice((0, 0, 1, 1, 2, 3))):
        headers.append((rnd.choice(NAMES), rnd.choice(VALUES).encode().decode("latin-1")))
    for _ in range(rnd.choice((0, 0, 0, 1, 1, 2, 3))):
        headers.append(rnd.choice(LINES))
    rnd.shuffle(headers)
    odd = rnd.random() < 0.04
    return {
        "method": rnd.choice(ODD_METHODS if odd else METHODS),
        "target": target,
        "headers": [list(pair) for pair in headers],
    }


_PIECES = "/ / . .. ; \\ % %2e %2E %2f %5C %61 %25 %2 %zz ? a admin v1 = ~ { %7e ;x".split()


def _mutated(rnd: random.Random, target: str) -> str:
    place = rnd.randrange(len(target) + 1)
    return target[:place] + rnd.choice(_PIECES) + target[place:]
