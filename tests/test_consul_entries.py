"""Config entries read: protocol, request normalization, jwt-providers."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.consul.conditions import parse_conditions
from mesh_middleware.consul.entries import parse_normalization, parse_protocol
from mesh_middleware.consul.providers import KeySource, parse_provider
from mesh_middleware.exceptions import AgentAnswerError
from mesh_middleware.intentions import Normalization
from mesh_middleware.intentions.jwt import DEFAULT_LOCATIONS, Location

SECRET = base64.urlsafe_b64encode(b"0" * 32).decode().rstrip("=")
JWKS = {"keys": [{"kty": "oct", "k": SECRET, "alg": "HS256"}]}
LOCAL = {"Local": {"JWKS": base64.b64encode(json.dumps(JWKS).encode()).decode()}}
URI = "https://login.example/keys"


def provider(**fields: Any) -> dict[str, Any]:
    entry = {"Kind": "jwt-provider", "Name": "okta", "Issuer": "me", "JSONWebKeySet": LOCAL}
    return entry | fields


def remote(**fields: Any) -> dict[str, Any]:
    return provider(JSONWebKeySet={"Remote": {"URI": URI} | fields})


@pytest.mark.parametrize(
    ("own", "shared", "protocol"),
    [
        (None, None, "tcp"),
        ({"Protocol": "http"}, None, "http"),
        ({"Protocol": "HTTP2"}, None, "http2"),
        ({"Protocol": ""}, {"Config": {"protocol": "grpc"}}, "grpc"),
        ({"Protocol": "tcp"}, {"Config": {"protocol": "http"}}, "tcp"),
        (None, {"Config": None}, "tcp"),
        (None, {"Config": {"other": 1}}, "tcp"),
    ],
    ids=["none", "own", "case", "shared", "own wins", "null", "nothing said"],
)
def test_protocol_is_the_services_own_else_the_shared_one_else_tcp(
    own: object, shared: object, protocol: str
) -> None:
    """service-defaults, then proxy-defaults, then Consul's default."""
    assert parse_protocol(own, shared) == protocol


@pytest.mark.parametrize("own", [7, [], {"Protocol": 7}], ids=["number", "list", "protocol"])
def test_a_protocol_that_cannot_be_read_is_an_error(own: object) -> None:
    """What was believed before stays."""
    with pytest.raises(AgentAnswerError):
        parse_protocol(own, None)


def mesh(**fields: Any) -> dict[str, Any]:
    return {"HTTP": {"Incoming": {"RequestNormalization": fields}}}


STRICTEST = Normalization(escaped_slashes="reject", underscores="reject")


@pytest.mark.parametrize(
    ("entry", "options"),
    [
        (None, Normalization()),
        ({}, Normalization()),
        ({"HTTP": None}, Normalization()),
        (mesh(), Normalization()),
        (mesh(InsecureDisablePathNormalization=True), Normalization(paths=False)),
        (mesh(MergeSlashes=True), Normalization(merge_slashes=True)),
        (mesh(PathWithEscapedSlashesAction="KEEP_UNCHANGED"), Normalization()),
        (mesh(PathWithEscapedSlashesAction="UNESCAPE_AND_FORWARD"),
         Normalization(escaped_slashes="unescape")),
        (mesh(PathWithEscapedSlashesAction="UNESCAPE_AND_REDIRECT"),
         Normalization(escaped_slashes="redirect")),
        (mesh(PathWithEscapedSlashesAction="EXPLODE"), Normalization(escaped_slashes="reject")),
        (mesh(HeadersWithUnderscoresAction="DROP_HEADER"), Normalization(underscores="drop")),
        (mesh(HeadersWithUnderscoresAction=7), Normalization(underscores="reject")),
        (mesh(MergeDots=True), STRICTEST),
        ({"HTTP": 7}, STRICTEST),
        ({"HTTP": {"Incoming": {"RequestNormalization": []}}}, STRICTEST),
    ],
)  # fmt: skip
def test_normalization_is_read_and_doubt_is_strict(entry: object, options: Normalization) -> None:
    """Consul's defaults where nothing is said, the strictest where something is not known."""
    assert parse_normalization(entry) == options


def test_a_local_provider_has_its_keys_at_once() -> None:
    """Name, issuer, audiences, default locations, keys."""
    read = parse_provider(provider(Audiences=["a"], ClockSkewSeconds=10, CacheConfig={"Size": 1}))
    assert read.source is None
    found = read.provider
    assert (found.name, found.issuer, found.audiences) == ("okta", "me", ("a",))
    assert found.locations == DEFAULT_LOCATIONS
    assert found.keys is not None and len(found.keys.keys) == 1


@pytest.mark.parametrize(("said", "skew"), [(None, 30), (0, 30), (5, 5), (30, 30), (3600, 30)])
def test_skew_is_at_most_half_a_minute(said: int | None, skew: float) -> None:
    """What Consul writes by default, or less."""
    assert parse_provider(provider(ClockSkewSeconds=said)).provider.skew == skew


def test_locations_are_read_in_order() -> None:
    """Header with its prefix, query parameter, cookie."""
    listed = [
        {"Header": {"Name": "X-Token", "ValuePrefix": "T ", "Forward": True}},
        {"QueryParam": {"Name": "t"}},
        {"Cookie": {"Name": "c"}},
    ]
    assert parse_provider(provider(Locations=listed)).provider.locations == (
        Location("header", "X-Token", "T ", forward=True),
        Location("query", "t"),
        Location("cookie", "c"),
    )


def test_forwarding_names_a_header() -> None:
    """In lower case; padding only when asked for."""
    forwarding = {"HeaderName": "X-Claims", "PadForwardPayloadHeader": True}
    found = parse_provider(provider(Forwarding=forwarding)).provider
    assert (found.forward_header, found.forward_padded) == ("x-claims", True)
    found = parse_provider(provider(Forwarding=None)).provider
    assert (found.forward_header, found.forward_padded) == ("", False)


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({}, KeySource(URI, 1.0, 300.0)),
        ({"RequestTimeoutMs": 2500}, KeySource(URI, 2.5, 300.0)),
        ({"RequestTimeoutMs": 1}, KeySource(URI, 0.1, 300.0)),
        ({"CacheDuration": "1m30s"}, KeySource(URI, 1.0, 90.0)),
        ({"CacheDuration": "30m0s"}, KeySource(URI, 1.0, 1800.0)),
        ({"CacheDuration": 2_000_000_000}, KeySource(URI, 1.0, 2.0)),
        ({"CacheDuration": "10ms"}, KeySource(URI, 1.0, 1.0)),
        ({"FetchAsynchronously": True, "RetryPolicy": {"NumRetries": 3}}, KeySource(URI)),
        ({"JWKSCluster": {"TLSCertificates": {"TrustedCA": {"InlineString": "pem"}}}},
         KeySource(URI, ca_pem="pem")),
        ({"JWKSCluster": {"TLSCertificates": {"TrustedCA": {"Filename": "/ca.pem"}}}},
         KeySource(URI, ca_file="/ca.pem")),
    ],
)  # fmt: skip
def test_remote_keys_have_a_source(fields: dict[str, Any], source: KeySource) -> None:
    """Address, time, rhythm and trust; durations as text or nanoseconds."""
    read = parse_provider(remote(**fields))
    assert read.source == source
    assert read.source.ca_pem == source.ca_pem
    assert read.provider.keys is None


def test_a_key_file_is_a_source_too() -> None:
    """It is read on this machine, as a proxy would read it on its own."""
    read = parse_provider(provider(JSONWebKeySet={"Local": {"Filename": "/keys.json"}}))
    assert read.source == KeySource("file:///keys.json")


@pytest.mark.parametrize(
    "entry",
    [
        7,
        {},
        provider(Name=""),
        provider(Issuer=7),
        provider(RequireThumbprint=True),
        provider(Audiences="a"),
        provider(JSONWebKeySet=None),
        provider(JSONWebKeySet={}),
        provider(JSONWebKeySet=LOCAL | {"Remote": {"URI": URI}}),
        provider(JSONWebKeySet={"Local": {}}),
        provider(JSONWebKeySet={"Local": {"JWKS": "%%%"}}),
        provider(JSONWebKeySet={"Local": {"JWKS": base64.b64encode(b"{}").decode()}}),
        remote(URI="ftp://x"),
        remote(URI="file:///etc/passwd"),
        remote(RequestTimeoutMs="soon"),
        remote(CacheDuration="soon"),
        remote(CacheDuration="1x"),
        remote(JWKSCluster={"TLSCertificates": {"CaCertificateProviderInstance": {"X": 1}}}),
        remote(JWKSCluster={"TLSCertificates": {"TrustedCA": {"EnvironmentVariable": "X"}}}),
        provider(Forwarding={"Header": "x"}),
        provider(Locations={}) | {"Locations": "x"},
        provider(Locations=[{}]),
        provider(Locations=[{"Header": {"Name": "a"}, "Cookie": {"Name": "b"}}]),
        provider(Locations=[{"Header": {}}]),
        provider(Locations=[{"Body": {"Name": "a"}}]),
    ],
)
def test_a_provider_that_cannot_be_read_is_an_error(entry: object) -> None:
    """An unknown field could be a condition: no token of such a provider is judged good."""
    with pytest.raises(AgentAnswerError):
        parse_provider(entry)


def test_a_provider_that_cannot_be_read_spoils_no_other() -> None:
    """It is left out and named; those that do not exist are left out."""
    entries = {
        "service-defaults": {"Protocol": "http"},
        "jwt-provider good": provider(Name="good"),
        "jwt-provider bad": provider(Strange=1),
        "jwt-provider gone": None,
        "jwt-provider far": remote(),
    }
    read = parse_conditions(entries, {})
    assert [item.name for item in read.conditions.providers] == ["far", "good"]
    assert set(read.unread) == {"bad"} and "'Strange'" in read.unread["bad"]
    assert set(read.sources) == {"far"}
    assert read.conditions.protocol == "http"


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["Local", "Remote", "URI", "JWKS", "Header", "Name", "TrustedCA", "HTTP",
                         "Incoming", "RequestNormalization", "MergeSlashes"]), inner, max_size=3),
    max_leaves=12,
))  # fmt: skip
def test_nothing_an_agent_says_is_a_crash(value: Any) -> None:
    """Either it is read, or it is an error of the agent's answer."""
    parse_normalization(value)
    for entry in (value, provider(JSONWebKeySet=value), provider(Locations=value), remote(
        JWKSCluster=value, CacheDuration=value, RequestTimeoutMs=value)):  # fmt: skip
        try:
            parse_provider(entry)
        except AgentAnswerError:
            continue
