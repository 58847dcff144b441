"""SPIFFE IDs: only the canonical spelling of one of Consul's five forms is accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.exceptions import IdentityError
from mesh_middleware.identity import (
    MAX_URI_BYTES,
    AgentId,
    GatewayId,
    ServerId,
    ServiceId,
    SigningId,
    SpiffeId,
    TrustDomain,
    parse_service_id,
    parse_spiffe_id,
)

TD = "1234.consul"
WEB = f"spiffe://{TD}/ns/default/dc/dc1/svc/web"


def padded(length: int) -> str:
    """A sound service ID of exactly *length* bytes."""
    head = f"spiffe://{TD}/ns/default/dc/dc1/svc/"
    return head + "a" * (length - len(head))


ACCEPTED = {
    "service": (WEB, ServiceId(TD, "default", "dc1", "web")),
    "namespace": (
        f"spiffe://{TD}/ns/Team-A/dc/dc1/svc/web",
        ServiceId(TD, "Team-A", "dc1", "web"),
    ),
    "partition": (
        f"spiffe://{TD}/ap/biz/ns/default/dc/dc1/svc/web",
        ServiceId(TD, "default", "dc1", "web", "biz"),
    ),
    "escaped slashes stay inside their part": (
        f"spiffe://{TD}/ap/biz%2Fdev/ns/foo%2Fbar/dc/bar%2Fbaz/svc/baz%2Fqux",
        ServiceId(TD, "foo/bar", "bar/baz", "baz/qux", "biz/dev"),
    ),
    "escaped space": (f"spiffe://{TD}/ns/a/dc/b/svc/my%20web", ServiceId(TD, "a", "b", "my web")),
    "escaped percent": (f"spiffe://{TD}/ns/a/dc/b/svc/50%25", ServiceId(TD, "a", "b", "50%")),
    "escaped question mark": (f"spiffe://{TD}/ns/a/dc/b/svc/w%3F", ServiceId(TD, "a", "b", "w?")),
    "escaped hash": (f"spiffe://{TD}/ns/a/dc/b/svc/w%23", ServiceId(TD, "a", "b", "w#")),
    "what Go leaves alone in a path": (
        f"spiffe://{TD}/ns/a/dc/b/svc/$&+,:;=@~-._",
        ServiceId(TD, "a", "b", "$&+,:;=@~-._"),
    ),
    "what Go escapes though it need not": (
        f"spiffe://{TD}/ns/a/dc/b/svc/%21%27%28%29%2A",
        ServiceId(TD, "a", "b", "!'()*"),
    ),
    "plus is no space": (f"spiffe://{TD}/ns/a/dc/b/svc/a+b", ServiceId(TD, "a", "b", "a+b")),
    "UTF-8": (f"spiffe://{TD}/ns/a/dc/b/svc/caf%C3%A9", ServiceId(TD, "a", "b", "café")),
    "dots that are no dot segment": (
        f"spiffe://{TD}/ns/a/dc/b/svc/...",
        ServiceId(TD, "a", "b", "..."),
    ),
    "longest": (
        padded(MAX_URI_BYTES),
        ServiceId(TD, "default", "dc1", padded(MAX_URI_BYTES).rpartition("/")[2]),
    ),
    "underscore in the trust domain": (
        "spiffe://a_b.consul/ns/a/dc/b/svc/c",
        ServiceId("a_b.consul", "a", "b", "c"),
    ),
    "agent": (f"spiffe://{TD}/agent/client/dc/dc1/id/n1", AgentId(TD, "dc1", "n1")),
    "agent in a partition": (
        f"spiffe://{TD}/ap/biz/agent/client/dc/dc1/id/n1",
        AgentId(TD, "dc1", "n1", "biz"),
    ),
    "gateway": (f"spiffe://{TD}/gateway/mesh/dc/dc1", GatewayId(TD, "dc1")),
    "gateway in a partition": (
        f"spiffe://{TD}/ap/biz/gateway/mesh/dc/dc1",
        GatewayId(TD, "dc1", "biz"),
    ),
    "server": (f"spiffe://{TD}/agent/server/dc/dc1", ServerId(TD, "dc1")),
    "signing": (f"spiffe://{TD}", SigningId(TD)),
}

REFUSED = {
    "empty": "",
    "no scheme": f"{TD}/ns/default/dc/dc1/svc/web",
    "another scheme": f"https://{TD}/ns/default/dc/dc1/svc/web",
    "upper-case scheme": f"SPIFFE://{TD}/ns/default/dc/dc1/svc/web",
    "opaque": f"spiffe:{TD}/ns/default/dc/dc1/svc/web",
    "one slash": f"spiffe:/{TD}/ns/default/dc/dc1/svc/web",
    "no trust domain": "spiffe:///ns/default/dc/dc1/svc/web",
    "upper-case trust domain": "spiffe://ABCD.consul/ns/default/dc/dc1/svc/web",
    "user": f"spiffe://root@{TD}/ns/default/dc/dc1/svc/web",
    "user and password": f"spiffe://root:secret@{TD}/ns/default/dc/dc1/svc/web",
    "port": f"spiffe://{TD}:443/ns/default/dc/dc1/svc/web",
    "empty port": f"spiffe://{TD}:/ns/default/dc/dc1/svc/web",
    "escaped trust domain": "spiffe://%31234.consul/ns/default/dc/dc1/svc/web",
    "IPv6 trust domain": "spiffe://[::1]/ns/default/dc/dc1/svc/web",
    "non-ASCII trust domain": "spiffe://bücher.consul/ns/default/dc/dc1/svc/web",
    "trust domain of 256": f"spiffe://{'a' * 256}/ns/default/dc/dc1/svc/web",
    "query": f"{WEB}?x=1",
    "empty query": f"{WEB}?",
    "fragment": f"{WEB}#x",
    "empty fragment": f"{WEB}#",
    "query before the path": f"spiffe://{TD}?/ns/default/dc/dc1/svc/web",
    "trailing slash": f"{WEB}/",
    "root path": f"spiffe://{TD}/",
    "empty name": f"spiffe://{TD}/ns/default/dc/dc1/svc/",
    "empty namespace": f"spiffe://{TD}/ns//dc/dc1/svc/web",
    "doubled first slash": f"spiffe://{TD}//ns/default/dc/dc1/svc/web",
    "empty segment at the end": f"{WEB}//",
    "dot": f"spiffe://{TD}/ns/default/dc/dc1/svc/.",
    "dot dot": f"spiffe://{TD}/ns/default/dc/../svc/web",
    "dot dot to another service": f"spiffe://{TD}/ns/default/dc/dc1/svc/tax/../web",
    "escaped dot dot": f"spiffe://{TD}/ns/default/dc/%2E%2E/svc/web",
    "escaped dot": f"spiffe://{TD}/ns/default/dc/dc1/svc/%2E",
    "half an escape": f"{WEB}%2",
    "bare percent": f"{WEB}%",
    "escape of no hex": f"{WEB}%zz",
    "lower-case hex": f"spiffe://{TD}/ns/a/dc/b/svc/baz%2fqux",
    "escaped letter": f"spiffe://{TD}/ns/default/dc/dc1/svc/%77eb",
    "doubly escaped": f"spiffe://{TD}/ns/default/dc/dc1/svc/%2577%65b",
    "unescaped bang, which Go escapes": f"{WEB}!",
    "unescaped star": f"spiffe://{TD}/ns/default/dc/dc1/svc/*",
    "escaped plus, which Go leaves": f"{WEB}%2B",
    "backslash": f"spiffe://{TD}/ns/default/dc/dc1/svc\\web",
    "space": f"{WEB} ",
    "leading space": f" {WEB}",
    "newline": f"{WEB}\n",
    "NUL": f"{WEB}\x00",
    "NUL and more": f"spiffe://{TD}/ns/default/dc/dc1/svc/web\x00.evil",
    "escaped NUL": f"{WEB}%00",
    "escaped control": f"{WEB}%0A",
    "escaped delete": f"{WEB}%7F",
    "not UTF-8": f"{WEB}%FF",
    "overlong UTF-8": f"{WEB}%C0%AF",
    "escaped surrogate": f"{WEB}%ED%A0%80",
    "non-ASCII": f"{WEB}é",
    "lone surrogate": f"{WEB}\udc80",
    "2049 bytes": padded(MAX_URI_BYTES + 1),
    "default partition written out": f"spiffe://{TD}/ap/default/ns/default/dc/dc1/svc/web",
    "default partition of a gateway": f"spiffe://{TD}/ap/default/gateway/mesh/dc/dc1",
    "partition of a server": f"spiffe://{TD}/ap/biz/agent/server/dc/dc1",
    "empty partition": f"spiffe://{TD}/ap//ns/default/dc/dc1/svc/web",
    "upper-case keyword": f"spiffe://{TD}/NS/default/dc/dc1/svc/web",
    "no datacenter": f"spiffe://{TD}/ns/default/svc/web",
    "order of parts": f"spiffe://{TD}/dc/dc1/ns/default/svc/web",
    "further segment": f"{WEB}/v1",
    "another workload's form": f"spiffe://{TD}/k8s/sa/web",
    "terminating gateway": f"spiffe://{TD}/gateway/terminating/dc/dc1",
    "signing without a dot": "spiffe://1234",
    "signing with a leading dot only": "spiffe://.consul",
}


@pytest.mark.parametrize(("uri", "value"), ACCEPTED.values(), ids=list(ACCEPTED))
def test_canonical_spelling_is_read_and_written_back(uri: str, value: SpiffeId) -> None:
    """Each of Consul's forms gives its value, whose text is the input again, to the byte."""
    assert parse_spiffe_id(uri) == value
    assert value.uri == uri == str(value)


@pytest.mark.parametrize("uri", REFUSED.values(), ids=list(REFUSED))
def test_any_other_spelling_is_refused(uri: str) -> None:
    """What is not the one canonical spelling of a form names nobody."""
    with pytest.raises(IdentityError):
        parse_spiffe_id(uri)


def test_table_is_as_long_as_promised() -> None:
    """The parse table has forty rows at the very least."""
    assert len(ACCEPTED) + len(REFUSED) >= 40


@pytest.mark.parametrize("kind", ["agent", "gateway", "server", "signing"])
def test_only_services_are_service_ids(kind: str) -> None:
    """An agent, a gateway, a server or a CA is a sound SPIFFE ID and yet no service."""
    uri, value = ACCEPTED[kind]
    assert value.kind == kind
    with pytest.raises(IdentityError, match=f"names a {kind}"):
        parse_service_id(uri)


def test_message_quotes_rule_and_input() -> None:
    """Who reads the error sees what was given and what the rule is."""
    with pytest.raises(IdentityError, match=r"'spiffe://x/y'.*end in /svc/<name>"):
        parse_spiffe_id("spiffe://x/y")


def test_message_does_not_repeat_a_huge_input() -> None:
    """A megabyte of attacker's text does not end up in a log line."""
    with pytest.raises(IdentityError) as caught:
        parse_spiffe_id("spiffe://" + "a" * 1_000_000)
    assert len(str(caught.value)) < 300


def test_comparison_is_bytewise() -> None:
    """Names that differ in case, namespace or trust domain are different callers."""
    web = parse_spiffe_id(WEB)
    assert web != parse_spiffe_id(WEB.replace("web", "Web"))
    assert web != parse_spiffe_id(WEB.replace("ns/default", "ns/Default"))
    assert web != parse_spiffe_id(WEB.replace("1234", "1235"))
    assert web == parse_spiffe_id(WEB)
    assert hash(web) == hash(parse_spiffe_id(WEB))


@pytest.mark.parametrize("name", ["", "ABC", "a b", "a/b", "a:1", "a\n", "é", "a" * 256])
def test_trust_domain_refuses(name: str) -> None:
    """A trust domain is lower-case letters, digits, dots, dashes and underscores."""
    with pytest.raises(IdentityError):
        TrustDomain(name)


def test_trust_domain_prints_itself() -> None:
    """The text of a trust domain is its name."""
    assert str(TrustDomain(TD)) == TD


PARTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(
    lambda part: part not in (".", "..") and "\x7f" not in part
)
DOMAINS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}\.consul", fullmatch=True)


@given(DOMAINS, PARTS, PARTS, PARTS, PARTS)
def test_services_survive_the_round_trip(
    domain: str, ns: str, dc: str, name: str, partition: str
) -> None:
    """Whatever a service is called, its ID reads back as the same value."""
    value = ServiceId(domain, ns, dc, name, partition)
    if len(value.uri) <= MAX_URI_BYTES:
        assert parse_spiffe_id(value.uri) == value


@given(DOMAINS, PARTS, PARTS, PARTS)
def test_agents_gateways_and_servers_survive_the_round_trip(
    domain: str, dc: str, node: str, partition: str
) -> None:
    """The other forms read back as the same value, and never as each other."""
    for value in (
        AgentId(domain, dc, node, partition),
        GatewayId(domain, dc, partition),
        ServerId(domain, dc),
    ):
        if len(value.uri) <= MAX_URI_BYTES:
            assert parse_spiffe_id(value.uri) == value


@given(st.text(max_size=60))
def test_any_text_is_an_id_or_an_identity_error(text: str) -> None:
    """No input makes the parser fail in another way, and what it accepts is canonical."""
    for uri in (text, f"spiffe://{text}", f"spiffe://{TD}/ns/default/dc/dc1/svc/{text}"):
        try:
            assert parse_spiffe_id(uri).uri == uri
        except IdentityError:
            pass


@given(st.text(st.sampled_from("abAB./%2FeE5~!?#:@ "), max_size=30))
def test_near_misses_are_refused_or_canonical(tail: str) -> None:
    """Text made of the troublesome characters is canonical or refused."""
    uri = f"spiffe://{TD}/ns/default/dc/dc1/svc/{tail}"
    try:
        value = parse_service_id(uri)
    except IdentityError:
        return
    assert value.uri == uri
    assert value.namespace == "default"
    assert value.datacenter == "dc1"
