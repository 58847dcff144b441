"""Consul's JSON: every recorded answer is read, and what breaks the API is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.certificates import check_chain, load_certificates
from mesh_middleware.config import Settings
from mesh_middleware.consul import wire
from mesh_middleware.consul.client import Answer, ConsulClient
from mesh_middleware.consul.intentions import parse_match
from mesh_middleware.exceptions import (
    AgentAnswerError,
    AgentError,
    AgentRefusedError,
    AgentUnavailableError,
)
from mesh_middleware.resolve import parse_health, parse_query

from .support.certs import TRUST_DOMAIN, Ca, service_uri

DATA = Path(__file__).parent / "data" / "consul"
VERSIONS = ("1.8.7", "1.10.1")
RECORDINGS = sorted(path.relative_to(DATA) for path in DATA.glob("*/*.json"))


def recording(version: str, name: str) -> dict[str, Any]:
    """One recorded answer, with the request it answers."""
    found: dict[str, Any] = json.loads((DATA / version / f"{name}.json").read_text())
    return found


def body(version: str, name: str) -> Any:
    """What the agent said."""
    return recording(version, name)["body"]


def ask(recorded: Mapping[str, Any]) -> Answer:
    """Put a recorded answer through the client, as it came over the wire."""
    is_json = "json" in recorded["headers"].get("Content-Type", "")
    content = json.dumps(recorded["body"]) if is_json else recorded["body"] or ""

    stream = httpx.ByteStream(content.encode())

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.method == recorded["request"]["method"]
        return httpx.Response(recorded["status"], headers=recorded["headers"], stream=stream)

    async def exchange() -> Answer:
        client = ConsulClient(Settings("tax"), httpx.MockTransport(answer))
        try:
            request = recorded["request"]
            question = wire.Question(request["path"], "some:right", request["method"])
            return await client.ask(question)
        finally:
            await client.close()

    return asyncio.run(exchange())


def test_both_versions_were_recorded_whole() -> None:
    """Seventy requests each: a lost file would be a test that silently is not run."""
    assert {path.parts[0] for path in RECORDINGS} == set(VERSIONS)
    assert len(RECORDINGS) == 140


@pytest.mark.parametrize("path", RECORDINGS, ids=str)
def test_recorded_answer_is_read(path: Path) -> None:
    """Each is an answer with its index and body, or one of the agent's errors, by its status."""
    recorded = json.loads((DATA / path).read_text())
    status = recorded["status"]
    if status in (200, 404):
        answer = ask(recorded)
        assert answer.status == status
        assert answer.index == int(recorded["headers"].get("X-Consul-Index", 0))
        assert answer.body == recorded["body"]
        return
    wanted = AgentUnavailableError if status >= 500 else AgentAnswerError
    with pytest.raises(wanted) as caught:
        ask(recorded)
    assert str(status) in str(caught.value)
    assert str(recorded["body"]).splitlines()[0][:60] in str(caught.value)


# -- roots -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["01-roots", "02-roots-catalog", "38-roots-again"])
def test_recorded_roots_are_read(version: str, name: str) -> None:
    """One root, whose own URI is the trust domain."""
    told = body(version, name)
    roots = wire.parse_roots(told)
    assert roots.trust_domain == told["TrustDomain"]
    assert roots.active == told["ActiveRootID"]
    assert len(roots.certificates) == 1
    assert len(load_certificates(roots.pem)) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_rotation_trusts_both_roots_and_no_intermediate(version: str) -> None:
    """After a rotation old and new root are anchors; the cross-signed certificate is none."""
    told = body(version, "67-roots-after-rotation")
    roots = wire.parse_roots(told)
    assert list(roots.certificates) == [root["RootCert"] for root in told["Roots"]]
    assert len(load_certificates(roots.pem)) == len(told["Roots"])


def rooted(ca: Ca, **changes: Any) -> dict[str, Any]:
    """A sound answer of roots, with *changes*."""
    root = {"ID": "00", "RootCert": ca.pem, "IntermediateCerts": None, "Active": True}
    return {"ActiveRootID": "00", "TrustDomain": TRUST_DOMAIN, "Roots": [root]} | changes


def test_trust_domain_of_the_roots_is_lower_case(ca: Ca) -> None:
    """The trust domain compares without case there; IDs carry it in lower case."""
    roots = wire.parse_roots(rooted(ca, TrustDomain=TRUST_DOMAIN.upper()))
    assert roots.trust_domain == TRUST_DOMAIN


def test_inactive_roots_count_and_intermediates_do_not(ca: Ca) -> None:
    """Trust every root in the list, and nothing that only leads to one."""
    bridge = Ca(issuer=ca)
    answer = rooted(
        ca,
        Roots=[
            {"RootCert": ca.pem, "Active": False, "IntermediateCerts": [bridge.pem]},
            {"RootCert": Ca().pem, "Active": True, "IntermediateCerts": None},
        ],
    )
    roots = wire.parse_roots(answer)
    assert len(roots.certificates) == 2
    assert bridge.pem not in roots.pem


def test_empty_list_of_roots_is_read_as_such(ca: Ca) -> None:
    """That it replaces nothing is the snapshot's rule."""
    assert wire.parse_roots(rooted(ca, Roots=[])).certificates == ()


BROKEN_ROOTS: dict[str, dict[str, Any]] = {
    "no trust domain": {"TrustDomain": None},
    "empty trust domain": {"TrustDomain": ""},
    "trust domain with a path": {"TrustDomain": "a.consul/ns"},
    "trust domain with a scheme": {"TrustDomain": "spiffe://a.consul"},
    "roots are null": {"Roots": None},
    "roots are a table": {"Roots": {}},
    "a root is null": {"Roots": [None]},
    "a root is a text": {"Roots": ["-----BEGIN CERTIFICATE-----"]},
    "a root has no certificate": {"Roots": [{}]},
    "a certificate is null": {"Roots": [{"RootCert": None}]},
    "a certificate is empty": {"Roots": [{"RootCert": ""}]},
    "a certificate is broken": {"Roots": [{"RootCert": "-----BEGIN CERTIFICATE-----\nMII\n"}]},
    "no active root": {"ActiveRootID": None},
}


@pytest.mark.parametrize("changes", BROKEN_ROOTS.values(), ids=list(BROKEN_ROOTS))
def test_roots_of_another_shape_are_an_answer_error(ca: Ca, changes: dict[str, Any]) -> None:
    """They replace nothing, and the message says what was expected."""
    with pytest.raises(AgentAnswerError):
        wire.parse_roots(rooted(ca, **changes))


def test_one_broken_root_spoils_the_answer(ca: Ca) -> None:
    """Half a list could lack the root that our peers need."""
    broken = {"RootCert": ca.pem[:200] + "\n-----END CERTIFICATE-----\n"}
    with pytest.raises(AgentAnswerError):
        wire.parse_roots(rooted(ca, Roots=[{"RootCert": ca.pem}, broken]))


# -- leaf ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["20-leaf", "68-leaf-after-rotation"])
def test_recorded_leaf_is_read(version: str, name: str) -> None:
    """ID, times and serial number stand in the certificate as beside it."""
    told = body(version, name)
    leaf = wire.parse_leaf(told).leaf
    assert leaf.id.uri == told["ServiceURI"]
    assert leaf.id.name == "tax"
    assert leaf.not_before.strftime("%FT%TZ") == told["ValidAfter"]
    assert leaf.not_after.strftime("%FT%TZ") == told["ValidBefore"]
    assert int(leaf.serial_number, 16) == int(told["SerialNumber"].replace(":", ""), 16)


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_leaf_is_signed_by_the_recorded_root(version: str) -> None:
    """What the two endpoints say belongs together."""
    leaf = wire.parse_leaf(body(version, "20-leaf")).leaf
    roots = wire.parse_roots(body(version, "01-roots"))
    check_chain(leaf.chain_pem, roots, leaf.not_after)


def leafed(ca: Ca, **changes: Any) -> dict[str, Any]:
    """A sound answer of a leaf, with *changes*."""
    made = ca.leaf()
    return {
        "SerialNumber": "08",
        "CertPEM": made.chain_pem,
        "PrivateKeyPEM": made.key_pem,
        "Service": "tax",
        "ServiceURI": service_uri("tax"),
    } | changes


BROKEN_LEAF: dict[str, dict[str, Any]] = {
    "certificate is null": {"CertPEM": None},
    "certificate is empty": {"CertPEM": ""},
    "certificate is a list": {"CertPEM": []},
    "certificate is no PEM": {"CertPEM": "MIIC"},
    "key is null": {"PrivateKeyPEM": None},
    "key is a number": {"PrivateKeyPEM": 5},
    "another URI than the certificate's": {"ServiceURI": service_uri("order")},
    "URI is a number": {"ServiceURI": 5},
}


@pytest.mark.parametrize("changes", BROKEN_LEAF.values(), ids=list(BROKEN_LEAF))
def test_leaf_of_another_shape_is_an_answer_error(ca: Ca, changes: dict[str, Any]) -> None:
    """It replaces nothing, and nothing of the key is in the message."""
    answer = leafed(ca, **changes)
    with pytest.raises(AgentAnswerError) as caught:
        wire.parse_leaf(answer)
    if isinstance(answer["PrivateKeyPEM"], str):
        secret = answer["PrivateKeyPEM"].splitlines()[1]
        assert secret[:12] not in str(caught.value)


def test_leaf_that_is_no_services_is_an_answer_error(ca: Ca) -> None:
    """An agent that hands out a CA, or a gateway's certificate, is not believed."""
    gateway = ca.leaf(uris=[f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1"])
    for pem in (ca.pem, gateway.pem, ca.leaf(uris=[]).pem):
        with pytest.raises(AgentAnswerError, match="leaf: "):
            wire.parse_leaf(leafed(ca, CertPEM=pem, ServiceURI=None))


def test_key_is_in_no_repr_of_the_answer(ca: Ca) -> None:
    """Neither the pair nor the client's answer shows it."""
    answer = leafed(ca)
    secret = answer["PrivateKeyPEM"].splitlines()[1]
    assert secret not in repr(wire.parse_leaf(answer))
    assert secret not in repr(Answer(200, 1, answer, {}))


def test_older_answers_without_a_uri_are_read(ca: Ca) -> None:
    """What the agent says beside the certificate is optional; the certificate counts."""
    assert wire.parse_leaf(leafed(ca, ServiceURI=None)).leaf.id.uri == service_uri("tax")


# -- intentions and instances ----------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_empty_match_is_no_intention(version: str) -> None:
    """``{"tax": null}`` means none, not unknown."""
    assert parse_match(body(version, "21-match-empty"), "tax") == ()


def test_recorded_l7_match_is_read_whole() -> None:
    """Precedence, order of permissions and every criterion of the 1.10.1 answer."""
    first, second = parse_match(body("1.10.1", "32-match-l7"), "tax")
    assert (first.source, first.allow, first.flaw) == ("invoice", None, None)
    assert [permission.allow for permission in first.permissions] == [False, True, True]
    assert [permission.path for permission in first.permissions] == [
        "/admin",
        "/tax",
        "/v[0-9]+/rates",
    ]
    assert first.permissions[1].methods == ("GET", "HEAD")
    assert [header.name for header in first.permissions[1].headers] == ["x-role", "x-trace"]
    assert (second.source, second.allow) == ("*", False)


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_instances_are_read(version: str) -> None:
    """A native instance and a sidecar, each with the identity it has to show."""
    (native,) = parse_health(body(version, "15-health-native"), trust_domain=TRUST_DOMAIN)
    assert (native.kind, native.expected.uri) == ("native", service_uri("tax"))
    for name in ("12-health-before-pass", "17-health-none"):
        assert parse_health(body(version, name), trust_domain=TRUST_DOMAIN) == ()
    for endpoint in parse_health(body(version, "16-health-sidecar"), trust_domain=TRUST_DOMAIN):
        assert (endpoint.kind, endpoint.expected.name) == ("sidecar", "invoice")


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_query_is_read(version: str) -> None:
    """An executed prepared query names instances like the health endpoint."""
    found = parse_query(body(version, "54-query-execute"), trust_domain=TRUST_DOMAIN)
    assert [endpoint.expected.name for endpoint in found] == ["tax"]


# -- the default policy ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_agent_tells_default_and_datacenter(version: str) -> None:
    """Both versions say so in their own settings."""
    told = body(version, "61-self")
    assert wire.parse_self_default(told) is True
    assert wire.parse_datacenter(told) == "dc1"


SELF: list[tuple[Any, bool | None]] = [
    ({"ACLDefaultPolicy": "allow", "ACLsEnabled": False}, True),
    ({"ACLDefaultPolicy": "deny", "ACLsEnabled": True}, False),
    # ACLs off but default deny: Envoy sidecars deny, authorize allows. The stricter counts.
    ({"ACLDefaultPolicy": "deny", "ACLsEnabled": False}, False),
    ({"ACLDefaultPolicy": "allow", "DefaultIntentionPolicy": ""}, True),
    ({"ACLDefaultPolicy": "allow", "DefaultIntentionPolicy": "deny"}, False),
    ({"ACLDefaultPolicy": "deny", "DefaultIntentionPolicy": "allow"}, True),
    ({"ACLDefaultPolicy": "allow", "DefaultIntentionPolicy": "perhaps"}, None),
    ({"ACLDefaultPolicy": "extend-cache"}, None),
    ({"ACLDefaultPolicy": "Allow"}, None),
    ({"ACLDefaultPolicy": ["allow"]}, None),
    ({"ACLDefaultPolicy": True}, None),
    ({"ACLDefaultPolicy": "hidden"}, None),
    ({}, None),
    (None, None),
    ([], None),
]


@pytest.mark.parametrize(("debug", "default"), SELF)
def test_default_is_read_from_the_agents_settings(debug: Any, default: bool | None) -> None:
    """The intentions' own policy first, then that of the ACLs; anything else is unknown."""
    assert wire.parse_self_default({"DebugConfig": debug}) is default


@pytest.mark.parametrize("answer", [None, [], "text", {}, {"Config": {}}])
def test_settings_without_debug_part_tell_nothing(answer: Any) -> None:
    """DebugConfig is documented as unstable: its absence is unknown, not an error."""
    assert wire.parse_self_default(answer) is None
    assert wire.parse_datacenter(answer) is None


ACLS, POLICY, OFF = (
    "Default behavior configured by ACLs",
    "Default intention policy",
    "ACLs disabled, access is allowed by default",
)
PROBE: list[tuple[bool, str, str | None, bool | None]] = [
    (True, ACLS, "allow", True),
    (False, ACLS, "deny", False),
    (True, OFF, "allow", True),
    (True, OFF, None, True),
    # ACLs off but default deny: authorize and header contradict each other.
    (True, OFF, "deny", None),
    (True, ACLS, "deny", None),
    (False, ACLS, "allow", False),
    # The intentions' own policy does not show in the header.
    (True, POLICY, "deny", True),
    (False, POLICY, "allow", False),
    (True, "Matched L4 intention: default/* => default/tax", "allow", None),
    (False, "Matched L7 intention: default/* => default/tax", "allow", None),
    (True, "", "allow", None),
    (True, OFF.upper(), "allow", None),
]


@pytest.mark.parametrize(("verdict", "reason", "header", "default"), PROBE)
def test_default_is_read_from_a_verdict_on_nobody(
    verdict: bool, reason: str, header: str | None, default: bool | None
) -> None:
    """Only the three default reasons tell it, and only where the header does not object."""
    answer = {"Authorized": verdict, "Reason": reason}
    assert wire.parse_probe(answer, header) is default


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_verdicts_tell_the_default_or_nothing(version: str) -> None:
    """The one about a pair without intention tells it, the one on a wildcard does not."""
    assert wire.parse_probe(body(version, "41-authorize-default"), "allow") is True
    if version == "1.10.1":
        assert wire.parse_probe(body(version, "40-authorize-wildcard"), "allow") is None
        assert wire.parse_probe(body(version, "39-authorize-l7"), "allow") is None


@pytest.mark.parametrize("authorized", [None, "true", 1, "yes", []])
def test_verdict_that_is_no_boolean_tells_nothing(authorized: Any) -> None:
    """Truthiness is not permission."""
    assert wire.parse_probe({"Authorized": authorized, "Reason": OFF}, "allow") is None


@pytest.mark.parametrize("answer", [None, [], "x", 5, True])
def test_verdict_of_another_shape_is_an_answer_error(answer: Any) -> None:
    """An answer that is no object is the agent's mistake."""
    with pytest.raises(AgentAnswerError, match="a JSON object is expected"):
        wire.parse_probe(answer, "allow")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["TrustDomain", "Roots", "RootCert", "ActiveRootID", "CertPEM", "PrivateKeyPEM"]
                + ["DebugConfig", "Authorized", "Reason", "Config", "ACLDefaultPolicy", "tax"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_an_agent_error(answer: Any) -> None:
    """No answer makes a parser fail in another way."""
    wire.parse_self_default(answer)
    wire.parse_datacenter(answer)
    for parse in (
        wire.parse_roots,
        wire.parse_leaf,
        lambda told: wire.parse_probe(told, None),
        lambda told: parse_match(told, "tax"),
        lambda told: parse_health(told, trust_domain=TRUST_DOMAIN),
    ):
        try:
            parse(answer)
        except AgentError:
            pass


# -- questions -------------------------------------------------------------------------------------

TAX = Settings("tax", port=5003, service_id="tax-5003")


def test_names_are_escaped_in_paths() -> None:
    """A service name is one path segment, whatever is in it."""
    odd = replace(TAX, service="a b?c%2F#d", service_id="../../v1/agent/leave")
    assert wire.leaf_question(odd.service).path.endswith("/leaf/a%20b%3Fc%252F%23d")
    assert wire.health_question(odd.service, None).path.endswith("/connect/a%20b%3Fc%252F%23d")
    assert wire.deregister_question(odd).path.endswith("/deregister/..%2F..%2Fv1%2Fagent%2Fleave")
    assert "/leave" not in wire.ttl_question(odd, "passing", "").path


def test_instance_is_registered_as_connect_native_with_a_ttl_check() -> None:
    """The body holds what the agent knows, and nothing it would refuse as unknown."""
    settings = replace(TAX, address="10.0.0.5", tags=("a",), meta={"version": "1"}, check_ttl=15.0)
    question = wire.register_question(settings)
    assert (question.method, question.path) == ("PUT", "/v1/agent/service/register")
    assert question.needs == 'service:write on "tax"'
    assert question.body == {
        "ID": "tax-5003",
        "Name": "tax",
        "Address": "10.0.0.5",
        "Port": 5003,
        "Tags": ["a"],
        "Meta": {"version": "1"},
        "Connect": {"Native": True},
        "Checks": [
            {
                "CheckID": "mesh:tax-5003",
                "Name": question.body["Checks"][0]["Name"],
                "TTL": "15s",
                "DeregisterCriticalServiceAfter": "1m",
            }
        ],
    }


def test_what_is_not_set_is_not_sent() -> None:
    """An empty address means the agent's own, and must not be registered as empty text."""
    assert set(wire.register_question(TAX).body) == {"ID", "Name", "Port", "Connect", "Checks"}


def test_check_starts_critical() -> None:
    """Nobody is sent to an instance before it said that it can serve."""
    (check,) = wire.register_question(TAX).body["Checks"]
    assert "Status" not in check


def test_state_is_reported_to_our_own_check() -> None:
    """Two instances on one host have two checks."""
    question = wire.ttl_question(TAX, "passing", "ready")
    assert (question.method, question.body) == ("PUT", {"Status": "passing", "Output": "ready"})
    assert question.path == "/v1/agent/check/update/mesh%3Atax-5003"
    assert (
        question.path != wire.ttl_question(replace(TAX, service_id="tax-5004"), "passing", "").path
    )


def test_only_healthy_instances_are_asked_for() -> None:
    """In our datacenter, unless another one is named."""
    assert wire.health_question("tax", None).params == {}
    assert wire.health_question("tax", "dc2").params == {"dc": "dc2"}
    scoped = wire.health_question("tax", None, namespace="team", partition="eu")
    assert scoped.params == {"ns": "team", "partition": "eu"}
    query = wire.query_question("near/est", "dc2")
    assert query.path == "/v1/query/near%2Fest/execute"
    assert query.params == {"connect": "true", "dc": "dc2"}


def test_probe_names_target_and_source() -> None:
    """POST, as the agent demands."""
    question = wire.authorize_question("tax", service_uri("nobody"))
    assert question.method == "POST"
    assert question.body["Target"] == "tax"
    assert question.body["ClientCertURI"] == service_uri("nobody")


def test_every_question_says_which_permission_it_needs() -> None:
    """A refusal is told with the right that is missing, and on what."""
    needs = [
        (wire.roots_question(), "nothing"),
        (wire.leaf_question("tax"), 'service:write on "tax"'),
        (wire.match_question("tax"), 'intentions:read on "tax"'),
        (wire.intentions_question(), "intentions:read"),
        (wire.health_question("tax", None), 'service:read on "tax" and node:read'),
        (wire.self_question(), "agent:read"),
        (wire.authorize_question("tax", "x"), 'service:write on "tax"'),
        (wire.deregister_question(TAX), 'service:write on "tax"'),
        (wire.ttl_question(TAX, "passing", ""), 'service:write on "tax"'),
    ]
    for question, right in needs:
        assert question.needs.startswith(right)


def test_refusal_names_the_missing_permission() -> None:
    """403 with the agent's own words and the right that would help."""
    refused = {
        "request": {"method": "GET", "path": "/v1/agent/connect/ca/leaf/tax"},
        "status": 403,
        "headers": {"Content-Type": "text/plain"},
        "body": "Permission denied",
    }
    with pytest.raises(AgentRefusedError, match=r"leaf/tax: Permission denied; needs some:right"):
        ask(refused)


def test_a_leaf_in_the_recording_has_no_key() -> None:
    """The recordings may be published: private keys are cut out of them."""
    for path in RECORDINGS:
        assert "PRIVATE KEY-----" not in (DATA / path).read_text()
