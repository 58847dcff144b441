"""``mesh explain``: the verdict, why, and why everything else lost."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mesh_middleware.cli.batch import Batch
from mesh_middleware.cli.explain import given, why
from mesh_middleware.dev import DevAgent
from tests.support.consul import RealConsul
from tests.support.servers import clean_environment

from .conftest import Run

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
CLERK = {"Name": "x-role", "Exact": "clerk"}
PERMISSIONS = [
    {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
    {"Action": "allow", "HTTP": {"PathPrefix": "/v1", "Methods": ["GET"], "Header": [CLERK]}},
    {"Action": "allow", "HTTP": {"PathRegex": "/items/[0-9]+"}},
]


def rule(source: str, destination: str = "web", **fields: Any) -> dict[str, Any]:
    return {"SourceName": source, "DestinationName": destination, "SourceType": "consul"} | fields


RULES = [
    rule("api", Permissions=PERMISSIONS),
    rule("*", Action="deny"),
    rule("cron", "*", Action="allow"),
    rule("pay", SourcePeer="east", Action="allow"),
]

EXPLAINED = """\
ALLOWED api -> web: GET /items/7 (permission_allow)

because
The first matching permission of the intention allows the request.

judged by
api -> web, precedence 9: permissions, number 2
default policy deny (assumed; say --default): not asked
protocol http, reading strict

permissions, the first that matches decides
0 deny any method /admin... the path /items/7 does not begin with /admin
1 allow GET /v1... [x-role is 'clerk'] the path /items/7 does not begin with /v1
2 allow any method ~ /items/[0-9]+ decides

other intentions
* -> web 8 deny outranked: precedence 8, decided at 9
peer east/pay -> web 9 allow about the peered cluster east: such callers are not known here
cron -> * 6 allow about cron, not api
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    """The match endpoint's answer, in a file."""
    return write(tmp_path, {"web": RULES})


def write(folder: Path, data: object, name: str = "rules.json") -> str:
    path = folder / name
    path.write_text(json.dumps(data))
    return str(path)


def told(run: Run, *words: str) -> dict[str, Any]:
    code, out, _ = run("explain", *words, "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == (0 if found["allowed"] else 1)
    return found


def test_an_allowed_request_is_explained_in_words(run: Run, file: str) -> None:
    """Verdict, intention, precedence, permission, default, one line per loser; exit code 0."""
    code, out, err = run("explain", "api", "GET", "/items/7", "--intentions", file)
    assert (code, err) == (0, "")
    assert [" ".join(line.split()) for line in out.splitlines()] == EXPLAINED.splitlines()


def test_a_denied_request_exits_with_1_and_names_what_to_do(run: Run, file: str) -> None:
    """Every denial says what it means and who can mend it."""
    code, out, err = run("explain", "order", "GET", "/v1", "--intentions", file)
    assert (code, err) == (1, "")
    assert out.startswith("DENIED  order -> web: GET /v1  (intention_deny)\n")
    assert out.endswith("what to do\n  Allow the source in Consul, if it should be.\n")


def test_each_reading_that_differs_is_told(run: Run, file: str) -> None:
    """A path with an escaped slash: which reading is which path, and what it leads to."""
    path = "/admin/..%2fitems/7"
    found = told(run, "api", "GET", path, "--intentions", file)
    assert (found["reason"], found["permission"]) == ("readings_differ", 0)
    says = {item["path"]: item["says"] for item in found["paths"]}
    assert says["/admin/../items/7"] == "permission 0 denies"
    assert says["/items/7"] == "permission 2 allows"
    assert {item["name"] for item in found["readings"]} >= {"normalized", "decoded"}
    assert all(item["meaning"] for item in found["readings"])
    _, out, _ = run("explain", "api", "GET", path, "--intentions", file)
    assert "readings that deny\n  normalized  as Envoy and Consul's default" in out
    assert "how the path can be read\n" in out


def test_readings_of_headers_are_told(run: Run, file: str) -> None:
    """A header that stands twice: the readings that deny, and what was wanted."""
    headers = ("-H", "x-role: clerk", "-H", "X-Role: boss")
    found = told(run, "api", "GET", "/v1", *headers, "--intentions", file)
    assert found["reason"] == "readings_differ"
    assert "headers_single" in {item["name"] for item in found["readings"]}
    assert "wanted in every way of reading it" in found["permissions"][1]["why"]
    assert told(run, "api", "GET", "/v1", *headers[:2], "--intentions", file)["permission"] == 1


def test_the_default_is_named_when_it_decides(run: Run, file: str) -> None:
    """--default says what it is, the explanation says that it decided."""
    words = ("api", "GET", "/other", "--intentions", file)
    found = told(run, *words, "--default", "allow")
    assert (found["reason"], found["default_decided"]) == ("default_allow", True)
    assert (found["intention"], found["precedence"], found["permission"]) == (0, 9, None)
    found = told(run, *words, "--default", "deny")
    assert (found["reason"], found["default_decided"]) == ("default_deny", True)
    assert (
        found["cause"] == "None of the intention's permissions matches; the default policy is deny."
    )


def test_every_other_intention_has_a_line(run: Run, file: str) -> None:
    """Other source, peer, lower rank: each with the reason it lost."""
    losers = told(run, "api", "GET", "/v1", "--intentions", file)["losers"]
    assert {item["words"]: item["why"].split(":")[0] for item in losers} == {
        "* -> web": "outranked",
        "cron -> *": "about cron, not api",
        "peer east/pay -> web": "about the peered cluster east",
    }


def test_many_intentions_about_others_are_counted(run: Run, tmp_path: Path) -> None:
    """Twenty are listed, the rest is one line; JSON has them all."""
    rules = [rule("api", Action="allow"), *(rule(f"s{n}", Action="deny") for n in range(50))]
    words = ("api", "GET", "/", "--intentions", write(tmp_path, {"web": rules}))
    _, out, _ = run("explain", *words)
    assert out.count(", not api") == 20
    assert "and 30 more about others; --json lists them all" in out
    assert len(told(run, *words)["losers"]) == 50


def test_two_intentions_that_disagree_are_told_apart(run: Run, file: str) -> None:
    """``* -> web`` outranks ``cron -> *``, Envoy's rules ask both: strict wants both."""
    found = told(run, "cron", "GET", "/", "--intentions", file)
    assert (found["reason"], [r["name"] for r in found["readings"]]) == (
        "readings_differ",
        ["precedence"],
    )
    assert found["cause"].startswith("Precedence and the rules that Envoy is given differ")
    assert found["remedy"].startswith("Make the intentions about this caller say the same")
    assert told(run, "cron", "GET", "/", "--intentions", file, "--reading", "envoy")["allowed"]


@pytest.mark.parametrize(
    ("action", "default", "reading"),
    [("allow", "deny", "precedence"), ("deny", "allow", "envoy_rules")],
)
def test_a_name_that_is_a_pattern_to_envoy_is_told(
    run: Run, tmp_path: Path, action: str, default: str, reading: str
) -> None:
    """``api.v1`` fits ``api-v1``, too: said as a hint, and in the line of the intention."""
    file = write(tmp_path, {"web": [rule("api.v1", Action=action)]})
    found = told(run, "api-v1", "GET", "/", "--intentions", file, "--default", default)
    assert (found["reason"], found["readings"][0]["name"]) == ("readings_differ", reading)
    assert found["hints"] == ["The source api.v1 is a regular expression to Envoy."]
    fits = "by its name about another; to Envoy that is a pattern, and it fits the caller"
    assert [item["why"] for item in found["losers"]] == [fits] * (action == "allow")


def test_a_header_that_proxies_drop_is_told(run: Run, file: str) -> None:
    """It was sent, and is not there: the caller named it in Connection."""
    headers = ("-H", "x-role: clerk", "-H", "connection: x-role")
    found = told(run, "api", "GET", "/v1", *headers, "--intentions", file)
    why = found["permissions"][1]["why"]
    assert why.startswith("there is no header x-role as proxies see it (a header named in")


@pytest.mark.parametrize(
    ("rules", "reason", "why"),
    [
        ([rule("api", Action="allow"), rule("w-*", Action="allow")], "unreadable_source", ""),
        ([rule("api", Action="maybe")], "unknown_action", ""),
        ([rule("api", Permissions=[{"Action": "allow", "HTTP": {"PathRegex": "(?=x)"}}])],
         "bad_pattern", "cannot be read: pattern '(?=x)'"),
    ],
    ids=["source", "action", "pattern"],
)  # fmt: skip
def test_what_cannot_be_read_is_named(
    run: Run, tmp_path: Path, rules: list[dict[str, Any]], reason: str, why: str
) -> None:
    """The flaw, and what it does to the others."""
    file = write(tmp_path, {"web": rules})
    found = told(run, "api", "GET", "/", "--intentions", file)
    assert found["reason"] == reason and found["detail"]
    if reason == "unreadable_source":
        assert found["losers"][0]["why"].endswith("so everyone is denied")
    elif why:
        assert found["permissions"][0]["why"].startswith(why)
    assert run("explain", "api", "GET", "/", "--intentions", file)[0] == 1


@pytest.mark.parametrize(
    "words",
    [
        ["get", "/v1"],
        ["GET", "/v1#x"],
        ["GET", "/v1", "-H", "host: a b"],
    ],
    ids=["method", "target", "head"],
)
def test_an_unsound_request_asks_no_intention(run: Run, file: str, words: list[str]) -> None:
    """It is refused with 400 before, and every intention says so."""
    found = told(run, "api", *words, "--intentions", file)
    assert (found["status"], found["permissions"]) == (400, [])
    near = [item for item in found["losers"] if item["words"] in ("api -> web", "* -> web")]
    assert {item["why"] for item in near} == {"not asked: such a request is refused before"}


def test_a_stranger_is_told_from_a_service(run: Run, file: str) -> None:
    """A SPIFFE ID of another trust domain, and one of no service."""
    mine = ("--trust-domain", DOMAIN, "--intentions", file)
    uri = "spiffe://other.consul/ns/default/dc/dc1/svc/api"
    assert told(run, uri, "GET", "/v1", *mine)["reason"] == "foreign_trust_domain"
    uri = f"spiffe://{DOMAIN}/gateway/mesh/dc/dc1"
    assert told(run, uri, "GET", "/v1", *mine)["reason"] == "peer_not_service"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("team/api", "about namespace default, the source is of team"),
        ("part/default/api", "about partition default, the source is of part"),
        ("default/default/api", ""),
    ],
)
def test_namespace_and_partition_stand_before_a_source(
    run: Run, file: str, source: str, line: str
) -> None:
    """As Consul's own command writes them; a fourth part is none."""
    losers = told(run, source, "GET", "/items/7", "--intentions", file)["losers"]
    assert (line in [item["why"] for item in losers]) is bool(line)
    code, _, err = run("explain", f"x/{source}/y/z", "GET", "/", "--intentions", file)
    assert code == 2 and "SERVICE is expected" in err


def test_on_tcp_permissions_deny(run: Run, file: str) -> None:
    """--protocol tcp judges the connection."""
    found = told(run, "api", "GET", "/items/7", "--protocol", "tcp", "--intentions", file)
    assert (found["reason"], found["protocol"]) == ("permissions_on_connection", "tcp")


def test_on_tcp_strict_asks_for_tokens_as_it_does_live(run: Run, tmp_path: Path) -> None:
    """Consul has tokens ignored on tcp, and so does ``envoy``."""
    rules = [rule("api", Action="allow", JWT={"Providers": [{"Name": "okta"}]})]
    words = ("api", "GET", "/", "--protocol", "tcp")
    words += ("--intentions", write(tmp_path, {"web": rules}))
    assert told(run, *words)["reason"] == "jwt_unknown_provider"
    assert told(run, *words, "--reading", "envoy")["reason"] == "intention_allow"


def test_a_list_of_intentions_will_do(run: Run, tmp_path: Path) -> None:
    """The form of the list endpoint: those about the service count."""
    file = write(tmp_path, [*RULES, rule("api", "db", Action="deny")])
    code, _, err = run("explain", "api", "GET", "/items/7", "--intentions", file)
    assert code == 2 and "speaks of db, web: say --service" in err
    words = ("api", "GET", "/items/7", "--intentions", file)
    assert told(run, *words, "--service", "web")["reason"] == "permission_allow"
    assert told(run, *words, "--service", "db")["reason"] == "intention_deny"


def test_config_entries_will_do(run: Run, tmp_path: Path) -> None:
    """Protocol, normalization and providers of the same file count, too."""
    source = {"Name": "api", "Permissions": [{"Action": "allow", "HTTP": {"PathExact": "/a/b"}}]}
    merge = {"HTTP": {"Incoming": {"RequestNormalization": {"MergeSlashes": True}}}}
    entries: list[dict[str, Any]] = [
        {"Kind": "service-intentions", "Name": "web", "Sources": [source]},
        {"Kind": "service-defaults", "Name": "web", "Protocol": "http"},
        {"Kind": "mesh", "Name": "mesh", **merge},
    ]
    envoy = ("api", "GET", "/a//b", "--reading", "envoy", "--intentions")
    assert told(run, *envoy, write(tmp_path, entries))["allowed"]
    assert not told(run, *envoy, write(tmp_path, entries[:2]))["allowed"]
    entries[1]["Protocol"] = "tcp"
    assert told(run, *envoy, write(tmp_path, entries))["reason"] == "permissions_on_connection"


def test_the_examples_intentions_can_be_explained(run: Run) -> None:
    """As they stand in the repository."""
    file = Path(__file__).parents[2] / "examples" / "flask_tax" / "intentions.json"
    assert told(run, "invoice", "GET", "/tax", "--intentions", str(file))["allowed"]
    assert not told(run, "invoice", "POST", "/tax", "--intentions", str(file))["allowed"]


def test_the_live_agent_is_asked(
    run: Run, mesh_agent: DevAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intentions, protocol and default policy come from it."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", mesh_agent.url.removeprefix("http://"))
    assert run("explain", "api", "GET", "/v1")[0] == 2
    words = ("api", "GET", "/v1", "--service", "web")
    found = told(run, *words)
    assert (found["reason"], found["protocol"]) == ("default_allow", "tcp")
    mesh_agent.set_protocol("web", "http")
    run("intention", "create", "api", "web", "--permission", json.dumps(PERMISSIONS[0]))
    assert told(run, *words)["protocol"] == "http"
    found = told(run, "api", "GET", "/admin", "--service", "web")
    assert (found["reason"], found["permission"]) == ("permission_deny", 0)
    monkeypatch.setenv("MESH_SERVICE", "web")
    assert told(run, "api", "GET", "/admin")["service"] == "web"


@pytest.mark.process
def test_a_real_old_consul_is_asked(
    run: Run, old_consul: RealConsul, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that knows neither mesh entry nor jwt-provider."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", old_consul.url.removeprefix("http://"))
    run("intention", "create", "api", "explained", "--deny")
    found = told(run, "api", "GET", "/v1", "--service", "explained")
    assert (found["reason"], found["precedence"]) == ("intention_deny", 9)
    run("intention", "delete", "api", "explained")
    assert told(run, "x", "GET", "/v1", "--service", "explained")["reason"] == "default_allow"


def test_no_agent_is_one_line(run: Run) -> None:
    """Exit code 1, no traceback."""
    words = ("api", "GET", "/", "--service", "web", "--agent", "127.0.0.1:1")
    code, out, err = run("explain", *words)
    assert (code, out, err.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    "words",
    [
        ["api"],
        ["api", "GET", "/", "--default", "perhaps"],
        ["api", "GET", "/", "--reading", "loose"],
        ["api", "GET", "/", "-H", "no colon"],
        ["api", "GET", "/", "--intentions", "/nowhere.json"],
        ["api", "--batch"],
        ["api", "GET", "/", "--protocol", "quic"],
        ["api", "GET", "/", "--trust-domain", "two words"],
        ["", "GET", "/"],
        ["*", "GET", "/"],
        ["two words", "GET", "/"],
        ["a/b/c/d", "GET", "/"],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_wrong_command_line_exits_with_2(run: Run, words: list[str], file: str) -> None:
    """One line on standard error, nothing on standard output."""
    if "--intentions" not in words:
        words = [*words, "--intentions", file]
    code, out, err = run("explain", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("option", "content", "said"),
    [
        ("--intentions", {}, "names no service"),
        ("--intentions", "x", "a list of intentions was expected"),
        ("--intentions", {"Kind": "service-intentions"}, "a list of Sources was expected"),
        ("--mesh", [], "a config entry of the kind mesh"),
        ("--mesh", {"Kind": "service-defaults"}, "a config entry of the kind mesh"),
        ("--mesh", {"RequestNormalization": {}}, "a config entry of the kind mesh"),
        ("--jwt-providers", [7], "jwt-provider entries"),
    ],
)
def test_a_file_of_something_else_is_a_wrong_command_line(
    run: Run, tmp_path: Path, option: str, content: Any, said: str, file: str
) -> None:
    """What it should hold is told; nothing is judged by half of it."""
    words = ["api", "GET", "/", option, write(tmp_path, content, "other.json")]
    if option != "--intentions":
        words += ["--intentions", file]
    code, out, err = run("explain", *words)
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err


def test_an_intention_without_a_destination_counts(run: Run, tmp_path: Path) -> None:
    """Written by hand: left out, its deny would be passed over."""
    rules = [{"SourceName": "api", "Action": "deny"}]
    words = ("api", "GET", "/", "--intentions", write(tmp_path, rules), "--default", "allow")
    assert told(run, *words)["reason"] == "intention_deny"


def test_what_a_terminal_would_obey_is_escaped(run: Run, file: str) -> None:
    """The target may be a stranger's, copied from a log."""
    _, out, _ = run("explain", "api", "GET", "/\x1b[2J\u00e9", "--intentions", file)
    assert "\x1b" not in out and "GET /\\x1b[2J\\xc3\\xa9" in out.splitlines()[0]


# -- tokens ----------------------------------------------------------------------------------------


class Issuer:
    """A provider of tokens with one key, made here and now."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        public: Any = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        self.jwks = {"keys": [{**public, "kid": "one", "use": "sig", "alg": "ES256"}]}

    def entry(self) -> dict[str, Any]:
        local = base64.b64encode(json.dumps(self.jwks).encode()).decode()
        keys = {"Local": {"JWKS": local}}
        return {"Kind": "jwt-provider", "Name": "okta", "Issuer": "okta", "JSONWebKeySet": keys}

    def token(self, **claims: Any) -> str:
        body = {"iss": "okta", "exp": int(time.time()) + 60} | claims
        return jwt.encode(body, self.key, "ES256", headers={"kid": "one"})


@pytest.mark.parametrize("form", ["entry", "list", "table", "plain keys"])
def test_tokens_are_judged_by_a_file_of_providers(run: Run, tmp_path: Path, form: str) -> None:
    """One entry, a list, a table by name; keys in base64, as Consul has them, or plain."""
    issuer = Issuer()
    entry = issuer.entry()
    if form == "plain keys":
        entry["JSONWebKeySet"] = {"Local": {"JWKS": issuer.jwks}}
    forms = {"list": [entry], "table": {"okta": {k: entry[k] for k in entry if k != "Name"}}}
    rules = [rule("api", Action="allow", JWT={"Providers": [{"Name": "okta"}]})]
    words = ("api", "GET", "/", "--intentions", write(tmp_path, {"web": rules}))
    assert told(run, *words)["reason"] == "jwt_unknown_provider"
    words += ("--jwt-providers", write(tmp_path, forms.get(form, entry), "providers.json"))
    found = told(run, *words)
    assert found["reason"] == "jwt_missing"
    assert found["hints"] == [
        "A token of okta is looked for in header authorization after 'Bearer '"
        " or parameter access_token."
    ]
    good = ("-H", f"authorization: Bearer {issuer.token()}")
    assert told(run, *words, *good)["reason"] == "intention_allow"
    late = ("-H", f"authorization: Bearer {issuer.token(exp=1)}")
    assert told(run, *words, *late)["reason"] == "jwt_invalid"


def test_remote_keys_that_cannot_be_read_are_told(run: Run, tmp_path: Path) -> None:
    """On standard error, once; the token is not judged."""
    entry = Issuer().entry() | {
        "JSONWebKeySet": {"Remote": {"URI": "http://127.0.0.1:1/keys", "RequestTimeoutMs": 500}}
    }
    rules = [rule("api", Action="allow", JWT={"Providers": [{"Name": "okta"}]})]
    code, out, err = run(
        *("explain", "api", "GET", "/", "--intentions", write(tmp_path, {"web": rules})),
        *("--jwt-providers", write(tmp_path, entry, "providers.json")),
    )
    assert code == 1 and "(jwt_no_keys)" in out
    assert err.startswith("mesh: keys of okta: http://127.0.0.1:1/keys: ")


def test_providers_that_cannot_be_read_are_a_wrong_command_line(run: Run, tmp_path: Path) -> None:
    """Exit code 2, and the field that is not known."""
    file = write(tmp_path, Issuer().entry() | {"Audience": ["x"]}, "providers.json")
    code, _, err = run("explain", "--batch", "--jwt-providers", file)
    assert code == 2 and "'Audience' is not known" in err


# -- many cases ------------------------------------------------------------------------------------


def case(name: str, **fields: Any) -> dict[str, Any]:
    request = {"method": "GET", "target": "/items/7", "headers": [["host", "web"]]}
    uri = f"spiffe://{DOMAIN}/ns/default/dc/dc1/svc/api"
    return {
        "id": name,
        "intentions": RULES,
        "default_allow": False,
        "protocol": "http",
        "trust_domain": DOMAIN,
        "source_uri": uri,
        "request": request,
    } | fields


def batch(cases: str, *words: str, said: str = "") -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "mesh_middleware.cli", "explain", "--batch", *words],
        input=cases.encode("utf-8", "surrogateescape"),
        env=clean_environment(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.decode() == said
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.process
def test_a_batch_answers_every_line_in_order() -> None:
    """The keys of the issue, and no others; a line that is no case gets an answer, too."""
    admin = {"method": "GET", "target": "/x/..%2fadmin", "headers": [["host", "web"]]}
    lines = [json.dumps(case("a")), "nonsense", json.dumps(case("b", request=admin)), ""]
    why = "mesh: line 2 is no case: Expecting value: line 1 column 1 (char 0)\n"
    found = batch("\n".join(lines), said=why)
    assert [(item["id"], item["allowed"], item["reason"]) for item in found] == [
        ("a", True, "permission_allow"),
        ("", False, "unreadable_case"),
        ("b", False, "default_deny"),
    ]
    keys = {"id", "allowed", "reason", "intention", "permission", "readings"}
    assert all(set(item) == keys for item in found)
    assert (found[0]["intention"], found[0]["permission"], found[0]["readings"]) == (0, 2, [])


ODD = {
    "cut off": '{"id": "x", "intentions": [',
    "no object": '["id", "x"]',
    "no JSON": "\udcff\udcfe",
    "deep": "[" * 100_000,
    "no intentions": {"intentions": ...},
    "no trust domain": {"trust_domain": ...},
    "no request": {"request": ...},
    "no method": {"request": {"target": "/", "headers": []}},
    "no byte": {"request": {"method": "GET", "target": "/\u20ac", "headers": []}},
    "a table of headers": {"request": {"method": "GET", "target": "/", "headers": {"a": "b"}}},
    "a header of three": {"request": {"method": "GET", "target": "/", "headers": [["a"] * 3]}},
    "a protocol that is none": {"protocol": "quic"},
    "a default in words": {"default_allow": "true"},
    "an id of numbers": {"source_uri": 7},
}


@pytest.mark.parametrize("odd", list(ODD.values()), ids=list(ODD))
def test_a_line_that_is_no_case_is_denied_and_told(odd: Any) -> None:
    """Also where the default allows; standard error says which line it was, and why."""
    if isinstance(odd, dict):
        made = {**case("x", default_allow=True), **odd}
        odd = json.dumps({key: value for key, value in made.items() if value is not ...})
    told: list[tuple[int, str]] = []
    judge = Batch("strict", clock=time.time, tell=lambda *line: told.append(line))
    [_, answer] = [json.loads(text) for text in judge.answers([json.dumps(case("1")), odd])]
    assert (answer["allowed"], answer["reason"]) == (False, "unreadable_case")
    [(number, why)] = told
    assert number == 2 and 0 < len(why) <= 200


@pytest.mark.process
def test_many_lines_that_are_no_cases_are_summed_up() -> None:
    """A file that is something else does not fill the screen."""
    lines = [f"mesh: line {n} is no case: a case is a JSON object\n" for n in range(1, 11)]
    batch("\n".join(["7"] * 1000), said="".join([*lines, "mesh: 1000 lines in all are no cases\n"]))


@pytest.mark.process
def test_a_closed_standard_input_is_one_line() -> None:
    """As of a service manager that gives none."""
    command = f"{sys.executable} -m mesh_middleware.cli explain --batch <&-"
    done = subprocess.run(
        command, shell=True, env=clean_environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mesh: --batch reads its cases from standard input, which is closed\n"


@pytest.mark.process
def test_a_batch_takes_lines_that_end_as_on_windows() -> None:
    """With a carriage return."""
    [found] = batch(json.dumps(case("a")) + "\r\n\r\n")
    assert found["allowed"]


@pytest.mark.process
def test_a_batch_reads_bytes_as_latin_1() -> None:
    """One character is one byte; a byte that is not ASCII is no sound target."""
    request = {"method": "GET", "target": "/items/\u00e9", "headers": [["host", "web"]]}
    [found] = batch(json.dumps(case("a", request=request)))
    assert found["reason"] == "unsound_target"


@pytest.mark.process
def test_a_batch_takes_reading_mesh_entry_and_providers(tmp_path: Path) -> None:
    """--reading, --mesh and --jwt-providers count for every case."""
    issuer = Issuer()
    rules = [rule("api", Permissions=[{"Action": "allow", "HTTP": {"PathExact": "/a/b"},
                                       "JWT": {"Providers": [{"Name": "okta"}]}}])]  # fmt: skip
    headers = [["host", "web"], ["authorization", f"Bearer {issuer.token()}"]]
    request = {"method": "GET", "target": "/a//b", "headers": headers}
    lines = json.dumps(case("a", intentions=rules, request=request))
    normalization = {"RequestNormalization": {"MergeSlashes": True}}
    words = (
        *("--mesh", write(tmp_path, {"HTTP": {"Incoming": normalization}}, "mesh.json")),
        *("--jwt-providers", write(tmp_path, [issuer.entry()], "providers.json")),
    )
    assert batch(lines, *words, "--reading", "envoy")[0]["reason"] == "permission_allow"
    assert batch(lines, *words, "--reading", "strict")[0]["reason"] == "readings_differ"


@pytest.mark.process
def test_a_batch_answers_before_the_next_case_comes() -> None:
    """Whoever waits for an answer gets it: nothing is held back until standard input ends."""
    command = [sys.executable, "-m", "mesh_middleware.cli", "explain", "--batch"]
    with subprocess.Popen(
        command, env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        for name in ("one", "two"):
            process.stdin.write(json.dumps(case(name)).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == name
        process.stdin.close()
        assert process.wait(10) == 0


def test_a_batch_answers_thousands_of_cases_a_second() -> None:
    """Two thousand different policies and requests in less than two seconds of CPU."""
    lines = []
    for n in range(2000):
        rules = [rule("api", Permissions=[{"Action": "deny", "HTTP": {"PathExact": f"/{n}"}}])]
        request = {"method": "GET", "target": f"/items/{n};x", "headers": [["host", "web"]]}
        lines.append(json.dumps(case(str(n), intentions=rules, request=request)))
    began = time.process_time()
    answers = list(Batch("strict", clock=time.time).answers(lines))
    assert len(answers) == 2000
    assert time.process_time() - began < 2


# -- the words and the verdict ---------------------------------------------------------------------

PATHS = [
    "/v1", "/admin", "/admin/x", "/items/7", "/items/x", "//admin", "/x/../admin", "/%61dmin",
    "/x/..%2fadmin", "/admin;a=b", "/items/7;x", "/x\\..\\admin", "/items//7", "/v1/%2e%2e/admin",
    "/v1/..;x/admin", "/%2561dmin", "/v1%2f..%2fadmin", "/items/7%3fx", "/other",
]  # fmt: skip


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_the_words_never_contradict_the_verdict(path: str, default: bool, file: str) -> None:
    """Where it is allowed every reading allows, where it is denied some reading denies."""
    policy = given.from_file(Path(file), None, None, "api")
    policy = given.override(
        policy,
        default="allow" if default else "deny",
        protocol=None,
        providers=None,
        normalization=None,
    )
    request = why.facts(policy, "GET", path, ["x-role: clerk"])
    for reading in ("strict", "envoy"):
        found = why.explain(policy, reading, "api", request)
        if found.verdict.status == 400:
            continue
        says = [item.says for item in found.readings]
        denies = [text for text in says if text.endswith(("denies", "default deny"))]
        assert not (found.verdict.allowed and denies)
        if found.verdict.reason == "readings_differ":
            assert denies and len(denies) < len(says)
        if found.verdict.permission is not None:
            decided = found.permissions[found.verdict.permission]
            assert decided.matches and not decided.why
