"""
The words random cases are made of: sources, targets, headers, criteria.

Each stands here because layers read it differently, or because it is next to one they do.
"""

from __future__ import annotations

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
    f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/api/",
    f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/api/x",
    f"spiffe://{TRUST_DOMAIN}/ns/default/dc//svc/api",
    f"spiffe://{TRUST_DOMAIN}/ns/default/dc/a/b/svc/api",
    f"spiffe://{TRUST_DOMAIN}/ap/default/ns/default/dc/dc1/svc/api",
    f"spiffe://{TRUST_DOMAIN}:80/ns/default/dc/dc1/svc/api",
    f"spiffe://{TRUST_DOMAIN.upper()}/ns/default/dc/dc1/svc/api",
    f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/api?x",
    f"https://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/api",
    service("API"),
    service("%61pi"),
    service("a+b"),
    service("aab"),
    service("ab"),
    service("apix"),
    service("api", namespace="Team"),
    service("api", partition="Part"),
]

RULE_SOURCES = [
    *["api"] * 6,
    *["web"] * 4,
    *["*"] * 5,
    "other",
    "api.v1",
    "a b",
    "a%20b",
    "a+b",
    "api|web",
    "ap.+",
    "[ab]pi",
    "API",
    "(?i)api",
    "api?",
]
"""Sources of intentions; some mean more to a regular expression than to people."""

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
    ("X-Forwarded-Client-Cert", "admin"),
    ("X-Forwarded-Client-Cert", "URI=spiffe://x/admin"),
    ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "Chunked"),
    ("Transfer-Encoding", "gzip, chunked"),
    ("Content-Length", "3"),
    ("Content-Length", "+3"),
    ("Content-Length", "03"),
    ("Connection", ""),
    ("Connection", ",x-role,,"),
    ("Connection", "Upgrade, x-role"),
    ("Connection", "x-a, x-team, upgrade, HTTP2-Settings"),
    ("Connection", "content-length"),
    ("Connection", "x-envoy-internal, te, x-role"),
    ("Connection", "x-request-id"),
    ("Connection", "x-forwarded-client-cert"),
    ("Upgrade", "WebSocket"),
    ("Upgrade", "websocket, h2c"),
    ("Upgrade", ""),
    ("TE", ""),
    ("TE", "trailers;q=0.5"),
    ("TE", "Trailers"),
    ("Expect", "100-Continue"),
    ("Expect", ""),
    ("X!Role", "admin"),
    ("x-role.", "admin"),
    ("X--Role", "admin"),
    ("x-role", "\xc3\xa9"),
    ("x-role", "ADMIN"),
    ("x-role", "user\t,\tadmin"),
    ("x-role", ","),
    ("x-role", ",admin"),
    ("Cookie", "a=b; role=admin"),
    ("Cookie", ""),
    ("Host", "web:443"),
    ("Host", "WEB:80"),
    ("X-Real-Ip", "admin"),
    ("Via", "1.1 x"),
    ("Date", "x"),
    ("Forwarded", "for=1"),
    ("X-Bad Name", "1"),
    ("X-Bad\xe9", "1"),
    ("X-Role:", "admin"),
    ("X-Ctl", "a\x01b"),
    ("X-Ctl", "a\x7fb"),
    ("X-Cr", "a\rb"),
    ("x-role", "ad\rmin"),
]

HOSTS = (
    ["web"] * 12
    + ["[::1]", "[::1]:80", "web.", "u@web", "web:", ":80", "web/x", "w%65b"]
    + ["WEB", "web:80", "web:8443", "other", "other.", "a,b", "", "we b", "we_b"]
)

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
    *({"PathRegex": text} for text in ("/admin\\b.*", "/a{0,3}.*", "(?s)/.*", "(?P<v>/v\\d)/.*")),
    *({"PathRegex": text} for text in ("\\Q/admin\\E", "(?m)^/admin$", "/[[:alpha:]]+", "(?U)/.+")),
    *({"PathRegex": text} for text in ("/\\x61dmin", "/caf.*", "/[\\w%./-]*", "admin", "/é", "|")),
    *(
        {"PathRegex": text}
        for text in ("/.{0,20}", "/(?:x/)*admin", "/\\S+", "\\A/admin\\z", "/\\C+")
    ),
]

RULE_HEADERS = (
    NAMES
    + """
Host :authority :path :method :scheme cookie authorization Content-Type accept user-agent
connection upgrade te expect keep-alive transfer-encoding content-length x-forwarded-for
x-forwarded-proto x-request-id x-forwarded-client-cert x-envoy-internal x-envoy-max-retries
x-envoy-original-path x-envoy-foo http2-settings origin forwarded (x) :protocol :foo
""".split()
    + ["x role", "x-role ", "x-role,x-a", "é", ":Authority"]
)

RULE_VALUES = (
    """
admin admin admin user web WEB web:80 other / /admin /admin?x=1 GET https http trailers websocket
h2c 100-continue other close curl/8 role=admin role=admin;a=b application/json 10.0.0.1 Bearer true
admin,user user,admin user,user x é
""".split()
    + ["Bearer a", "Bearer a,Bearer b", "text/html,*/*", "a=b", "0"]
)

RULE_REGEXES = [
    *("admin", "adm.*", "(?i)admin", ".*", ".+", "[^,]*", "a.b", "ad.*|user", ".", "\\S*"),
    *(
        "(?i)é",
        "\\w+",
        "[^a-z]*",
        "\\pL+",
        "\\D+",
        "(user|admin)(,.*)?",
        "^$",
        "admin|",
        "[é]+",
        "\\xe9",
    ),
    *("..", "\\C", "\\x{e9}", "[[:^alpha:]]*", "(?s).*", "\\bad.*"),
]
