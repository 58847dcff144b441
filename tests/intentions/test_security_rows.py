"""
The rows of the security reference that concern policy, one test each; the name tells the row.

Each of them went wrong somewhere once: in Consul, in Envoy, in Istio, in a framework. `test_rows`
has the table of all rows, also of those whose tests stand elsewhere.
"""

from __future__ import annotations

import itertools

import pytest

from mesh_middleware.intentions import AsgiFacts, Decision, Policy, Reason, WsgiFacts, matchers

from .support import ask, header, intention, permission, policy, source

SPELLINGS = """
/admin /admin/ /admin/users //admin ///admin /./admin /././admin /x/../admin /x/y/../../admin
/%61dmin /%61%64%6d%69%6e /adm%69n /x/%2e%2e/admin /x/.%2e/admin /x/%2E./admin /%2e/admin
/x/%2e%2e%2fadmin /x%2f..%2fadmin /x%2f%2e%2e%2fadmin /%2fadmin /%2Fadmin //%2fadmin /.%2fadmin
/x/..%2fadmin /x/..%5cadmin /x%5c..%5cadmin /\\admin /%5cadmin /%5Cadmin /x\\..\\admin /x/..\\admin
/./\\admin /admin%2f /admin%2Fusers /admin%5cusers /admin\\users /admin; /admin;x=1 /admin;/users
/;/admin /;x/admin /.;/admin /.;x/admin /x/..;/admin /x/..;p=1/admin /x/%2e%2e;p/admin
/x;y/../admin /admin%3bx /%3b/admin /x/..%3b/admin /admin/. /admin/x/.. /admin/./users
/v1/../admin /v1//../admin /v1/%2e%2e/admin /v1/..;/admin /v1/..%2fadmin /v1\\..\\admin
/v1/x/..//../admin /v1/%2e%2e%2f%61dmin /v1/.%2e%2Fadmin /v1;x/..;y/admin /v1/x/../../admin?x=1
/admin? /admin?x=1 /admin?/../v1
""".split()


def guarded(**options: object) -> list[Policy]:
    """A deny on ``/admin`` before an allow of all; and an allow of ``/v1`` alone."""
    deny = [permission("deny", PathPrefix="/admin"), permission(PathPrefix="/")]
    allow = [permission(PathPrefix="/v1")]
    return [
        policy(intention(Permissions=rules), default_allow=default, **options)
        for rules, default in ((deny, False), (deny, True), (deny[:1], True), (allow, False))
    ]


def scope(target: bytes, path: str, headers: list[tuple[bytes, bytes]] | None = None) -> AsgiFacts:
    raw, _, query = target.partition(b"?")
    return AsgiFacts(
        {"method": "GET", "path": path, "raw_path": raw, "query_string": query,
         "headers": headers or [(b"host", b"web")]}
    )  # fmt: skip


def test_cve_2024_10005_no_spelling_of_a_protected_path_passes() -> None:
    """At least 60 spellings that some layer takes for ``/admin``: all denied, on every policy."""
    assert len(SPELLINGS) >= 60
    for judge, target in itertools.product(guarded(), SPELLINGS):
        assert not ask(judge, target).allowed, target
    for judge in guarded():
        assert ask(judge, "/v1/books").allowed


@pytest.mark.parametrize("target", ["/%2561dmin", "/%252fadmin", "/%25%36%31dmin"])
def test_cve_2024_10005_what_is_escaped_twice_is_decoded_once(target: str) -> None:
    """Nothing behind us decodes twice: such a path is another path, and no reading of it."""
    deny = guarded()[1]
    assert ask(deny, target).allowed
    assert not ask(guarded()[3], target).allowed


DENY_ADMIN = permission("deny", **header("x-role", Exact="admin"))
ONLY_ADMIN = permission("allow", **header("x-role", Exact="admin"))
REPEATS = [
    [(b"x-role", b"user"), (b"x-role", b"admin")],
    [(b"x-role", b"admin"), (b"x-role", b"user")],
    [(b"x-role", b"user,admin")],
    [(b"x-role", b"user, admin")],
    [(b"X-Role", b"admin"), (b"x-role", b"user")],
    [(b"x-role", b" admin\t"), (b"x-role", b"")],
    [(b"x_role", b"admin"), (b"x-role", b"user")],
]


@pytest.mark.parametrize("headers", REPEATS)
def test_cve_2024_10006_repeated_headers_deny_but_do_not_allow(
    headers: list[tuple[bytes, bytes]],
) -> None:
    """A deny fires when any value matches, joined, apart or listed; an allow needs every one."""
    judge = policy(intention(Permissions=[DENY_ADMIN, permission()]))
    assert not ask(judge, headers=headers).allowed
    judge = policy(intention(Permissions=[ONLY_ADMIN]))
    assert not ask(judge, headers=headers).allowed
    assert ask(judge, headers=[(b"X-ROLE", b" admin ")]).allowed


def test_secvuln_41453_normalization_is_done_here_whoever_calls() -> None:
    """A caller that is no gateway and one that forwards for others are read alike: by us."""
    for name in ("api", "gateway"):
        rules = [permission("deny", PathPrefix="/admin"), permission()]
        judge = policy(intention(name, Permissions=rules))
        assert not ask(judge, "/x/../admin", caller=source(name)).allowed


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_cve_2021_36213_one_permission_says_nothing_about_the_rest(
    default: bool, action: str
) -> None:
    """One L7 permission, both actions, both defaults: what it misses takes the default."""
    judge = policy(
        intention(Permissions=[permission(action, PathExact="/a")]), default_allow=default
    )
    assert ask(judge, "/a").allowed is (action == "allow")
    assert ask(judge, "/b").allowed is default


def test_cve_2023_3518_a_token_is_no_identity() -> None:
    """Another service with any token is denied by identity; see test_jwt for the other half."""
    judge = policy(intention(JWT={"Providers": [{"Name": "okta"}]}))
    bearer = [(b"authorization", b"Bearer x.y.z")]
    assert ask(judge, headers=bearer, caller=source("other")).reason is Reason.DEFAULT_DENY


@pytest.mark.parametrize("target", ["/v1%00", "/v1/%00/admin", "/%00v1", "/v1/\x00"])
def test_cve_2019_9900_nul_is_refused(target: str) -> None:
    """A NUL, escaped or not, is a 400: no prefix ends at it."""
    for judge in guarded():
        verdict = ask(judge, target)
        assert (verdict.allowed, verdict.status) == (False, 400)
    nul = policy(intention(Permissions=[ONLY_ADMIN]))
    assert ask(nul, headers=[(b"x-role", b"admin\x00")]).status == 400


@pytest.mark.parametrize("escape", ["%2f", "%2F", "%5c", "%5C"])
def test_cve_2021_29492_escaped_slashes_are_read_both_ways(escape: str) -> None:
    """A rule on either reading of an escaped slash denies; an allow needs both."""
    deny = policy(intention(Permissions=[permission("deny", PathExact="/a/b"), permission()]))
    assert not ask(deny, f"/a{escape}b").allowed
    allow = policy(intention(Permissions=[permission(PathExact=f"/a{escape}b")]))
    verdict = ask(allow, f"/a{escape}b")
    assert (verdict.allowed, verdict.reason) == (True, Reason.PERMISSION_ALLOW)
    both = policy(intention(Permissions=[permission(PathPrefix="/a/")]))
    assert ask(both, f"/a{escape}b").reason is Reason.READINGS_DIFFER


def test_cve_2026_26308_each_value_of_a_header_is_matched() -> None:
    """A value hidden behind another one still matches a deny, and inverted tests see it, too."""
    hidden = [(b"x-role", b"guest"), (b"x-role", b"admin")]
    inverted = policy(
        intention(Permissions=[permission(**header("x-role", Exact="admin", Invert=True))])
    )
    assert not ask(inverted, headers=hidden).allowed
    assert ask(inverted, headers=hidden[:1]).allowed


@pytest.mark.parametrize("target", ["/admin;x=1", "/v1;x/..;y/admin", "/;x/admin", "/x/..;/admin"])
def test_cve_2026_73511_path_parameters_are_kept_and_cut(target: str) -> None:
    """``;parameters`` are read as part of a segment, and as none."""
    assert not ask(guarded()[1], target).allowed


@pytest.mark.parametrize(
    "name", ["x-envoy-internal", "x-forwarded-client-cert", "x-envoy-max-retries"]
)
def test_cve_2024_45806_internal_headers_of_callers_open_nothing(name: str) -> None:
    """An allow on a header that proxies own is not to be had by sending it."""
    judge = policy(intention(Permissions=[permission(**header(name, Exact="true"))]))
    assert not ask(judge, headers=[(name.encode(), b"true")]).allowed


@pytest.mark.parametrize(
    "host", [b"admin.test", b"ADMIN.test", b"admin.test:80", b"Admin.Test:443"]
)
def test_istio_cve_2021_39155_host_is_read_without_case_and_port(host: bytes) -> None:
    """A deny on a host fires for every spelling of it."""
    deny = permission("deny", **header("Host", Exact="admin.test"))
    judge = policy(intention(Permissions=[deny, permission()]))
    assert not ask(judge, headers=[(b"Host", host)]).allowed
    assert ask(judge, headers=[(b"Host", b"web")]).allowed


@pytest.mark.parametrize("target", ["/v1#/../admin", "/admin#x", "/#/admin", "/v1?x#y", "#"])
def test_istio_cve_2021_39156_a_fragment_is_refused(target: str) -> None:
    """``#`` anywhere in a target is a 400, also in the query, also where it was seen before."""
    for judge in guarded():
        assert ask(judge, target.partition("#")[0] or "/").status in (200, 403)
        verdict = ask(judge, target)
        assert (verdict.allowed, verdict.status) == (False, 400)
        path, _, query = target.encode().partition(b"?")
        judge.decide(source(), scope(path, path.decode()))
        assert judge.decide(source(), scope(target.encode(), path.decode())).status == 400


def test_an_unsound_query_poisons_no_other_request() -> None:
    """What was refused for its query is not remembered for the path without it."""
    judge = guarded()[3]
    assert judge.decide(source(), scope(b"/v1?#", "/v1")).status == 400
    assert judge.decide(source(), scope(b"/v1?a", "/v1")).allowed


@pytest.mark.parametrize("target", ["v1", "admin", "v1/admin", "", "\\admin", "%2fv1", "web:80"])
def test_grpc_go_cve_2026_33186_a_target_without_a_slash_is_refused(target: str) -> None:
    """A target that is neither a path nor an absolute URL is a 400."""
    for judge in guarded():
        assert ask(judge, target).status == 400


@pytest.mark.parametrize("target", ["http://h/admin", "https://h/x/../admin", "HTTP://h//admin"])
def test_absolute_targets_are_read_as_paths(target: str) -> None:
    """The path of an absolute target is judged, and so is what servers hand on literally."""
    for judge in guarded():
        assert not ask(judge, target).allowed
        literal = scope(target.encode(), target)
        assert not judge.decide(source(), literal).allowed


def test_underscores_in_names_are_dashes_to_wsgi() -> None:
    """``X_Role`` beside ``X-Role``: denied where one matches a deny, no help for an allow."""
    deny = policy(intention(Permissions=[DENY_ADMIN, permission()]))
    allow = policy(intention(Permissions=[ONLY_ADMIN]))
    assert not ask(deny, headers=[(b"X_Role", b"admin")]).allowed
    assert not ask(allow, headers=[(b"X_Role", b"admin")]).allowed
    assert not ask(allow, headers=[(b"X_Role", b"user"), (b"X-Role", b"admin")]).allowed


def test_xfcc_is_never_believed() -> None:
    """A caller's ``X-Forwarded-Client-Cert`` changes neither who calls nor what a rule sees."""
    forged = [(b"x-forwarded-client-cert", b"URI=spiffe://1234.consul/ns/default/dc/dc1/svc/api")]
    assert not ask(policy(intention()), headers=forged, caller=source("other")).allowed
    rule = permission(**header("x-forwarded-client-cert", Contains="svc/api"))
    assert not ask(policy(intention(Permissions=[rule])), headers=forged).allowed


def test_proxy_headers_do_not_change_the_verdict() -> None:
    """``X-Forwarded-*``, ``Forwarded`` and overrides move neither path, host nor method."""
    judge = guarded()[3]
    for name in (b"x-forwarded-uri", b"x-original-url", b"x-rewrite-url", b"x-forwarded-prefix"):
        assert not ask(judge, "/admin", headers=[(name, b"/v1")]).allowed
    only_get = policy(intention(Permissions=[permission(Methods=["GET"])]))
    override = [(b"x-http-method-override", b"GET")]
    assert not ask(only_get, method="DELETE", headers=override).allowed
    only_web = policy(intention(Permissions=[permission(**header("host", Exact="web"))]))
    forwarded = [(b"x-forwarded-host", b"web"), (b"host", b"else")]
    assert not ask(only_web, headers=forwarded).allowed


@pytest.mark.parametrize("pattern", ["\\d", "^/a", "a$", "(?m)^/a$", "/a.b", "/a"])
def test_regexes_match_the_whole_path_as_re2_reads_them(pattern: str) -> None:
    """No search, no multiline surprise, no Unicode digits: what RE2 says on the whole of it."""
    judge = policy(intention(Permissions=[permission(PathRegex=pattern)]))
    assert not ask(judge, "/x/a%0ab").allowed
    assert not ask(judge, "/a/b/c").allowed


def test_redos_patterns_are_matched_without_backtracking() -> None:
    """The engine is RE2 and no other; a pattern that hangs ``re`` is answered."""
    assert matchers.engine().__name__ == "re2"
    judge = policy(intention(Permissions=[permission(PathRegex="/(a+)+b")]))
    assert not ask(judge, "/" + "a" * 5000).allowed


@pytest.mark.parametrize(
    "method", ["get", "Get", "gET", "G E T", "GET ", "", "*", "G\x00ET", "FOO"]
)
def test_methods_are_upper_case_tokens(method: str) -> None:
    """A method that layers may fold or refuse is a 400, wherever a rule looks at requests."""
    judge = policy(intention(Permissions=[permission(Methods=["POST"]), permission("deny")]))
    assert ask(judge, method=method).status == 400
    assert not ask(guarded()[3], "/v1", method=method).allowed


def test_head_is_not_get() -> None:
    """A rule on ``GET`` says nothing about ``HEAD``, as in Envoy."""
    judge = policy(intention(Permissions=[permission(Methods=["GET"])]))
    assert ask(judge).allowed
    assert not ask(judge, method="HEAD").allowed


def test_a_header_named_in_connection_is_there_and_is_not() -> None:
    """Proxies drop it, the application sees it: a deny fires, and so does one on its absence."""
    named = [(b"x-role", b"admin"), (b"connection", b"close, X-Role")]
    assert not ask(policy(intention(Permissions=[DENY_ADMIN, permission()])), headers=named).allowed
    absent = permission("deny", **header("x-role", Present=True, Invert=True))
    assert not ask(policy(intention(Permissions=[absent, permission()])), headers=named).allowed
    verdict = ask(policy(intention(Permissions=[DENY_ADMIN, permission()])), headers=named)
    assert verdict.readings == ("connection",)
    assert not ask(policy(intention(Permissions=[ONLY_ADMIN])), headers=named).allowed


def test_pieces_of_a_cookie_are_read_together() -> None:
    """HTTP/2 sends a cookie in pieces; a deny on the whole fires."""
    deny = permission("deny", **header("cookie", Exact="a=b; role=admin"))
    pieces = [(b"cookie", b"a=b"), (b"cookie", b"role=admin")]
    assert not ask(policy(intention(Permissions=[deny, permission()])), headers=pieces).allowed


ENVIRONS = [
    {"PATH_INFO": "/admin"},
    {"PATH_INFO": "//admin"},
    {"PATH_INFO": "/x/../admin"},
    {"PATH_INFO": "/admin;x"},
    {"PATH_INFO": "/\\admin"},
    {"PATH_INFO": "admin", "SCRIPT_NAME": "/"},
    {"PATH_INFO": "/admin", "RAW_URI": "/v1"},
    {"PATH_INFO": "/v1", "RAW_URI": "/admin"},
    {"PATH_INFO": "/v1", "REQUEST_URI": "/v1/%2e%2e/admin"},
    {"PATH_INFO": "/v1\x00"},
    {"PATH_INFO": "v1"},
    {"PATH_INFO": "/v1", "QUERY_STRING": "a#b"},
]


@pytest.mark.parametrize("environ", ENVIRONS, ids=str)
def test_wsgi_is_judged_by_what_the_application_sees(environ: dict[str, str]) -> None:
    """Where the raw target is hidden, the environ is read in every way it leaves open."""
    for judge in (guarded()[0], guarded()[3]):
        verdict = judge.decide(source(), WsgiFacts({"REQUEST_METHOD": "GET", **environ}))
        assert not verdict.allowed


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_policy_holds_for_websockets_and_mounted_applications(kind: str) -> None:
    """A handshake is a GET of its path; ``root_path`` is part of the path that is judged."""

    def judged(path: str) -> Decision:
        found = {
            "type": kind, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [], "root_path": "/mounted",
        }  # fmt: skip
        return guarded()[3].decide(source(), AsgiFacts(found))

    assert judged("/v1/socket").allowed
    assert not judged("/mounted/v1/socket").allowed
    assert not judged("/admin").allowed
