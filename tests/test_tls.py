"""The live contexts and the gate: who may connect, with what, and what outlives a change."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509

from mesh_middleware import tls
from mesh_middleware.certificates import KeyPair, Roots
from mesh_middleware.exceptions import CertificateError, PeerMismatchError
from mesh_middleware.gate import GateError, current_peer, peer_of
from mesh_middleware.identity import GatewayId, ServiceId, parse_service_id
from mesh_middleware.tls import Generation, LiveContext, client_context, server_context

from .support.certs import (
    HOUR,
    NOW,
    OTHER_DOMAIN,
    TRUST_DOMAIN,
    Ca,
    Made,
    plain_context,
    resigned,
    service_uri,
)
from .support.handshakes import Ends
from .support.listening import close_server

PATIENCE = 10.0
TAX = parse_service_id(service_uri("tax"))
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Node:
    """A mesh's half of TLS without the mesh: the test swaps its generation and its clock."""

    def __init__(self, pair: KeyPair | None = None, roots: Roots | None = None) -> None:
        self.generation = Generation(pair, roots, 1)
        self.moment = NOW

    def swap(self, pair: KeyPair | None, roots: Roots | None) -> None:
        """Take a new leaf, or new roots."""
        old = self.generation
        self.generation = Generation(pair, roots, old.number + 1, like=old)

    def now(self) -> datetime:
        """The test's clock."""
        return self.moment

    def server(self, **options: Any) -> LiveContext:
        """A live context for serving."""
        return server_context(lambda: self.generation, self.now, **options)

    def client(self, expected: ServiceId = TAX) -> LiveContext:
        """A live context for calling *expected*."""
        return client_context(lambda: self.generation, self.now, expected)


def node(ca: Ca, name: str = "tax") -> Node:
    """A joined node."""
    return Node(ca.leaf(name).pair, ca.roots())


def only(context: ssl.SSLContext, version: str) -> ssl.SSLContext:
    """*context*, speaking one version."""
    context.maximum_version = context.minimum_version = VERSIONS[version]
    return context


def outsider(ca: Ca, made: Made | None, version: str = "1.3") -> ssl.SSLContext:
    """A client that is not ours, trusting *ca* and showing *made*."""
    return only(plain_context("client", [ca], made), version)


def outside_server(ca: Ca, made: Made, version: str = "1.3") -> ssl.SSLContext:
    """A server that is not ours."""
    return only(plain_context("server", [ca], made), version)


# -- the gate --------------------------------------------------------------------------------------


def _wrong(case: str, ca: Ca, foreign: Ca) -> tuple[Made | None, str]:
    """A certificate that breaks one rule, and a word of the error."""
    second = timedelta(seconds=1)
    cases: dict[str, Callable[[], tuple[Made | None, str]]] = {
        "foreign CA": lambda: (foreign.leaf(), "(?i)verif|unknown"),
        "missing intermediate": lambda: (Ca(issuer=ca).leaf(chain=""), "(?i)verif|unknown"),
        "expired": lambda: (ca.leaf(not_after=NOW - second), "(?i)expired"),
        "not valid yet": lambda: (ca.leaf(not_before=NOW + HOUR), "(?i)not.*valid"),
        "no URI name": lambda: (ca.leaf(uris=[]), "0 URI names"),
        "two URI names": lambda: (
            ca.leaf(uris=[service_uri("tax"), service_uri("order")]),
            "2 URI names",
        ),
        "no SPIFFE ID": lambda: (ca.leaf(uris=["https://tax"]), "a SPIFFE ID is"),
        "upper-case trust domain": lambda: (
            ca.leaf(uris=[service_uri("tax", TRUST_DOMAIN.upper())]),
            "trust domain",
        ),
        "wrong trust domain": lambda: (
            ca.leaf(uris=[service_uri("tax", OTHER_DOMAIN)]),
            "trust domain is not",
        ),
        "CA as leaf": lambda: (ca.leaf(ca=True), "CA:TRUE"),
        "the CA itself": lambda: (Made(ca.certificate, ca.key), "(?i)CA:TRUE|verif"),
        "keyCertSign": lambda: (
            ca.leaf(usages=("digital_signature", "key_cert_sign")),
            "of a CA",
        ),
        "cRLSign": lambda: (ca.leaf(usages=("digital_signature", "crl_sign")), "of a CA"),
        "no key usage": lambda: (ca.leaf(usages=None), "no key usage"),
        "e-mail usage": lambda: (ca.leaf(extended=("email",)), "(?i)purpose|verif"),
        "unreadable": lambda: (resigned(ca, *_twin(ca)), "unreadable"),
    }
    return cases[case]()


def _twin(ca: Ca) -> tuple[Made, bytes, bytes]:
    """A leaf with two extensions that become one and the same."""
    one, two = (
        x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.4.{last}"), b"\x05\x00")
        for last in (5, 6)
    )
    made = ca.leaf(extensions=[(one, False), (two, False)])
    return made, bytes.fromhex("06042a030406"), bytes.fromhex("06042a030405")


WRONG = [
    "foreign CA", "missing intermediate", "expired", "not valid yet", "no URI name",
    "two URI names", "no SPIFFE ID", "upper-case trust domain", "wrong trust domain",
    "CA as leaf", "the CA itself", "keyCertSign", "cRLSign", "no key usage", "e-mail usage",
    "unreadable",
]  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", WRONG)
def test_server_refuses(ca: Ca, foreign_ca: Ca, case: str, version: str) -> None:
    """A caller whose certificate breaks any rule does not get past the handshake."""
    made, message = _wrong(case, ca, foreign_ca)
    ends = Ends(outsider(ca, made, version), node(ca).server()).shake()
    assert isinstance(ends.server_error, ssl.SSLError)
    with pytest.raises(ssl.SSLError, match=message):
        raise ends.server_error
    assert peer_of(ends.server) is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", WRONG)
def test_client_refuses(ca: Ca, foreign_ca: Ca, case: str, version: str) -> None:
    """An upstream whose certificate breaks any rule is told nothing."""
    made, message = _wrong(case, ca, foreign_ca)
    assert made is not None
    ends = Ends(node(ca, "order").client(), outside_server(ca, made, version)).shake()
    assert isinstance(ends.client_error, ssl.SSLError)
    with pytest.raises(ssl.SSLError, match=message):
        raise ends.client_error
    assert peer_of(ends.client) is None


@pytest.mark.parametrize("version", VERSIONS)
def test_server_refuses_callers_without_a_certificate(ca: Ca, version: str) -> None:
    """Mutual TLS: no certificate, no connection."""
    ends = Ends(outsider(ca, None, version), node(ca).server()).shake()
    with pytest.raises(ssl.SSLError, match="(?i)peer did not return a certificate"):
        raise ends.server_error or AssertionError
    assert peer_of(ends.server) is None


@pytest.mark.parametrize("role", ["client", "server"])
def test_extended_usage_of_the_other_role_is_refused(ca: Ca, role: str) -> None:
    """A certificate for serving only calls nobody, and the other way round."""
    made = ca.leaf(extended=("server" if role == "client" else "client",))
    if role == "client":
        ends = Ends(outsider(ca, made), node(ca).server()).shake()
        assert isinstance(ends.server_error, ssl.SSLError)
    else:
        ends = Ends(node(ca).client(), outside_server(ca, made)).shake()
        assert isinstance(ends.client_error, ssl.SSLError)


@pytest.mark.parametrize("version", VERSIONS)
def test_sound_caller_is_let_in_and_known(ca: Ca, version: str) -> None:
    """The peer's ID, serial number and end are there once the handshake is done."""
    made = ca.leaf("order")
    ends = Ends(outsider(ca, made, version), node(ca).server()).shake()
    assert ends.well
    peer = peer_of(ends.server)
    assert peer is not None
    assert peer.id.uri == service_uri("order")
    assert peer.serial_number == f"{made.certificate.serial_number:x}"
    assert ends.say(b"hello") == b"hello"


@pytest.mark.parametrize("version", VERSIONS)
def test_our_client_and_our_server_understand_each_other(ca: Ca, version: str) -> None:
    """Both ends ours: each knows the other."""
    client = node(ca, "order").client()
    server = node(ca, "tax").server()
    ends = Ends(client, server).shake()
    assert ends.well
    found = peer_of(ends.server), peer_of(ends.client)
    assert [peer.id.uri for peer in found if peer] == [service_uri("order"), service_uri("tax")]
    assert ends.say(b"hello") == b"hello"
    assert ends.answer(b"hello back") == b"hello back"


@pytest.mark.parametrize(
    "uri",
    [
        f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1",
        f"spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/n1",
    ],
    ids=["gateway", "agent"],
)
def test_other_kinds_of_identity_connect_as_what_they_are(ca: Ca, uri: str) -> None:
    """The gate tells who it is; whether a gateway may call is for the intentions to say."""
    ends = Ends(outsider(ca, ca.leaf(uris=[uri])), node(ca).server()).shake()
    peer = peer_of(ends.server)
    assert ends.well and peer is not None
    assert peer.id.uri == uri
    assert not isinstance(peer.id, ServiceId)


def test_gateway_is_no_upstream(ca: Ca) -> None:
    """A client that expects a service does not talk to a gateway of the same mesh."""
    made = ca.leaf(uris=[f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1"])
    ends = Ends(node(ca).client(), outside_server(ca, made)).shake()
    assert isinstance(ends.client_error, GateError)
    assert isinstance(ends.client_error.mismatch, PeerMismatchError)
    assert ends.client_error.mismatch.actual == GatewayId(TRUST_DOMAIN, "dc1").uri


@pytest.mark.parametrize(("role", "offset"), [("server", 2), ("client", 2), ("server", -2)])
def test_time_is_judged_by_our_clock(ca: Ca, role: str, offset: int) -> None:
    """A certificate that OpenSSL's clock accepts and ours does not is refused."""
    ours = node(ca)
    ours.moment = NOW + offset * HOUR
    made = ca.leaf()
    if role == "server":
        error = Ends(outsider(ca, made), ours.server()).shake().server_error
    else:
        error = Ends(ours.client(), outside_server(ca, made)).shake().client_error
    with pytest.raises(GateError, match="expired|not valid before"):
        raise error or AssertionError


def test_known_certificate_is_judged_again_when_it_expires(ca: Ca) -> None:
    """What was parsed once is remembered, its end included."""
    ours, made = node(ca), ca.leaf("order")
    server = ours.server()
    assert Ends(outsider(ca, made), server).shake().well
    ours.moment = NOW + HOUR + timedelta(seconds=1)
    assert isinstance(Ends(outsider(ca, made), server).shake().server_error, GateError)


def test_certificate_known_as_client_is_judged_anew_as_server(ca: Ca) -> None:
    """The memory of certificates knows the role they were judged for."""
    generation = node(ca).generation
    made = ca.leaf(extended=("client",))
    assert generation.peer(made.der, "client", NOW).id.uri == service_uri("tax")
    with pytest.raises(GateError, match="TLS server"):
        generation.peer(made.der, "server", NOW)


def test_memory_of_certificates_is_bounded(ca: Ca, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many callers do not fill it without end, and are known correctly all the same."""
    monkeypatch.setattr(tls, "KNOWN_PEERS", 3)
    generation = node(ca).generation
    made = {name: ca.leaf(name).der for name in "abcdefg"}
    for _ in range(2):
        for name, der in made.items():
            assert generation.peer(der, "client", NOW).id == ServiceId(
                TRUST_DOMAIN, "default", "dc1", name
            )
            assert len(generation._peers) <= 3


@pytest.mark.parametrize(
    ("permitted", "well"),
    [(TRUST_DOMAIN, True), (OTHER_DOMAIN, False)],
    ids=["its own domain", "another domain"],
)
def test_name_constraints_of_an_intermediate_hold(ca: Ca, permitted: str, well: bool) -> None:
    """A CA that may name one trust domain only cannot name another."""
    limits = x509.NameConstraints([x509.UniformResourceIdentifier(permitted)], None)
    middle = Ca(issuer=ca, extensions=[limits])
    ends = Ends(outsider(ca, middle.leaf("order")), node(ca).server()).shake()
    assert ends.well is well
    assert (peer_of(ends.server) is not None) is well


def test_intermediate_brought_by_the_peer_leads_to_our_root(ca: Ca) -> None:
    """Chains of Vault and of secondary datacenters, and cross-signed roots."""
    made = Ca(issuer=ca).leaf("order")
    assert Ends(outsider(ca, made), node(ca).server()).shake().well
    newer = Ca()
    crossed = newer.leaf("order", chain=newer.cross_signed_by(ca))
    assert Ends(outsider(ca, crossed), node(ca).server()).shake().well


def test_system_roots_are_not_trusted(ca: Ca, tmp_path: Path, monkeypatch: Any) -> None:
    """What SSL_CERT_FILE names verifies nobody in the mesh."""
    public = Ca(name="public CA")
    path = tmp_path / "system.pem"
    path.write_text(public.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    ends = Ends(outsider(ca, public.leaf()), node(ca).server()).shake()
    assert isinstance(ends.server_error, ssl.SSLError)


def test_handshake_can_be_denied_by_identity(ca: Ca) -> None:
    """``may_connect`` refuses a sound certificate before its first request."""
    server = node(ca).server(may_connect=lambda source: source.uri == service_uri("order"))
    assert Ends(outsider(ca, ca.leaf("order")), server).shake().well
    error = Ends(outsider(ca, ca.leaf("web")), server).shake().server_error
    with pytest.raises(GateError, match="no request of it is allowed"):
        raise error or AssertionError


def test_connection_without_a_gate_is_refused(ca: Ca) -> None:
    """The ordinary context inside a generation is of no use by itself: fail closed."""
    inner = node(ca).generation.context("server", ())
    ends = Ends(outsider(ca, ca.leaf()), inner).shake()
    with pytest.raises(GateError, match="no gate"):
        raise ends.server_error or AssertionError


# -- the expected identity -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "actual",
    [
        service_uri("order"),
        service_uri("Tax"),
        service_uri("tax").replace("dc1", "dc2"),
        service_uri("tax").replace("ns/default", "ns/other"),
        service_uri("tax").replace("/ns/", "/ap/biz/ns/"),
    ],
    ids=["service", "case", "datacenter", "namespace", "partition"],
)
def test_upstream_has_to_be_exactly_the_expected_one(ca: Ca, actual: str) -> None:
    """Another identity of the same mesh is a mismatch that names both."""
    ends = Ends(node(ca, "order").client(), outside_server(ca, ca.leaf(uris=[actual]))).shake()
    error = ends.client_error
    assert isinstance(error, GateError) and isinstance(error, ssl.SSLCertVerificationError)
    assert error.mismatch is not None
    assert (error.mismatch.expected, error.mismatch.actual) == (service_uri("tax"), actual)


class Listener:
    """
    A TLS server on a real socket that keeps what it is sent.

    Args:
        context: wraps each connection.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(PATIENCE)
        self.address = self._socket.getsockname()
        self.received: list[bytes] = []
        self.errors: list[Exception] = []
        self._pool = ThreadPoolExecutor(1)
        self.served = self._pool.submit(self._serve)

    def _serve(self) -> None:
        plain, _ = self._socket.accept()
        plain.settimeout(PATIENCE)
        try:
            with self._context.wrap_socket(plain, server_side=True) as secure:
                self.received.append(secure.recv(65536))
        except (ssl.SSLError, ConnectionError) as error:
            self.errors.append(error)
            plain.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._socket.close()

    def connect(self) -> socket.socket:
        """A plain connection to it."""
        return socket.create_connection(self.address, PATIENCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_wrong_upstream_gets_not_one_byte(ca: Ca, version: str) -> None:
    """On a real socket: the handshake ends in an error, and nothing was sent after it."""
    with Listener(outside_server(ca, ca.leaf("order"), version)) as wrong:
        with wrong.connect() as plain:
            with pytest.raises(GateError, match="the certificate names .*order"):
                node(ca).client().wrap_socket(plain)
        wrong.served.result(PATIENCE)
    assert b"".join(wrong.received) == b""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("way", ["send", "sendall", "write", "sendfile", "recv", "read"])
def test_skipping_the_handshake_does_not_skip_the_gate(ca: Ca, way: str, version: str) -> None:
    """OpenSSL would shake hands on the first read or write: that is refused until the gate is."""
    with Listener(outside_server(ca, ca.leaf("order"), version)) as wrong:
        with wrong.connect() as plain:
            client = node(ca).client().wrap_socket(plain, do_handshake_on_connect=False)
            with client, pytest.raises(GateError):
                _use(client, way)
        wrong.served.result(PATIENCE)
    assert b"".join(wrong.received) == b""


def _use(client: ssl.SSLSocket, way: str) -> None:
    if way == "sendfile":
        with tempfile.TemporaryFile() as file:
            file.write(b"GET / HTTP/1.1\r\n")
            file.seek(0)
            client.sendfile(file)
    elif way in ("recv", "read"):
        getattr(client, way)(100)
    else:
        getattr(client, way)(b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize("side", ["client", "server"])
def test_object_that_did_not_pass_the_gate_carries_nothing(ca: Ca, side: str) -> None:
    """Nor does one in memory, before its handshake or after a refused one."""
    if side == "client":
        ends = Ends(node(ca).client(), outside_server(ca, ca.leaf("order")))
    else:
        ends = Ends(outsider(ca, ca.leaf(uris=[])), node(ca).server())
    end = ends.client if side == "client" else ends.server
    for _ in range(2):
        with pytest.raises(GateError):
            end.write(b"secret")
        with pytest.raises(GateError):
            end.read(10)
        ends.shake()
    assert isinstance(ends.client_error or ends.server_error, GateError)


def test_handshake_is_refused_again_when_it_is_tried_again(ca: Ca) -> None:
    """A server that asks twice hears no twice."""
    ends = Ends(outsider(ca, ca.leaf(uris=[])), node(ca).server()).shake()
    with pytest.raises(GateError):
        ends.server.do_handshake()
    assert peer_of(ends.server) is None


# -- contexts that live ----------------------------------------------------------------------------


def _shown(ends: Ends) -> str:
    """Serial number of the server's certificate, as the client sees it."""
    found = ends.client.getpeercert()
    assert found is not None
    return str(found["serialNumber"]).lower().lstrip("0")


def test_each_connection_gets_the_newest_leaf(ca: Ca) -> None:
    """One context for the life of the server; the leaf behind it is renewed."""
    ours, caller = node(ca), outsider(ca, ca.leaf("order"))
    server = ours.server()
    for _ in range(3):
        pair = ca.leaf().pair
        ours.swap(pair, ca.roots())
        assert _shown(Ends(caller, server).shake()) == pair.leaf.serial_number


def test_old_kind_of_key_is_served_no_more(ca: Ca) -> None:
    """From RSA to EC: a context that only grew would still offer the RSA leaf."""
    ours = Node(ca.leaf(key="rsa").pair, ca.roots())
    server = ours.server()
    rsa_only = outsider(ca, ca.leaf("order"), "1.2")
    rsa_only.set_ciphers("aRSA")
    assert Ends(rsa_only, server).shake().well
    ours.swap(ca.leaf().pair, ca.roots())
    assert Ends(rsa_only, server).shake().server_error is not None
    assert Ends(outsider(ca, ca.leaf("order")), server).shake().well


@pytest.mark.parametrize("side", ["server", "client"])
def test_dropped_root_is_trusted_no_more(ca: Ca, side: str) -> None:
    """Rotation: first both roots are trusted, then only the new one, on the same context."""
    newer = Ca()
    ours = Node(ca.leaf().pair, ca.roots())
    made = ca.leaf("tax")

    def well() -> bool:
        if side == "server":
            return Ends(outsider(newer, made), context).shake().server_error is None
        return Ends(context, outside_server(newer, made)).shake().client_error is None

    context = ours.server() if side == "server" else ours.client()
    ours.swap(newer.leaf().pair, newer.roots(ca))
    assert well()
    ours.swap(newer.leaf().pair, newer.roots())
    assert not well()


def test_connection_begun_before_a_change_is_judged_by_the_roots_it_began_with(ca: Ca) -> None:
    """One generation from first to last byte of a handshake; never half of each."""
    newer = Ca()
    ours = node(ca)
    ends = Ends(outsider(ca, ca.leaf("order")), ours.server())
    ours.swap(newer.leaf().pair, newer.roots())
    assert ends.shake().well


def test_connection_ends_when_its_root_is_dropped(ca: Ca) -> None:
    """Established connections report end-of-file at their next bytes, once their root is gone."""
    newer = Ca()
    ours = node(ca)
    ends = Ends(outsider(ca, ca.leaf("order")), ours.server()).shake()
    assert ends.say(b"1") == b"1"
    ours.swap(newer.leaf().pair, newer.roots(ca))
    assert ends.say(b"2") == b"2"
    ours.swap(newer.leaf().pair, newer.roots())
    assert ends.say(b"3") == b""


def test_connection_ends_when_the_caller_expires(ca: Ca) -> None:
    """What is left of the certificate is what is left of the connection."""
    ours = node(ca)
    server = ours.server()
    ours.moment = NOW + HOUR - timedelta(microseconds=1)
    ends = Ends(outsider(ca, ca.leaf("order")), server).shake()
    assert ends.well
    assert ends.say(b"late") == b""


def test_connection_ends_at_its_greatest_age(ca: Ca) -> None:
    """``max_age`` ends a connection whatever it stands on."""
    ends = Ends(outsider(ca, ca.leaf("order")), node(ca).server(max_age=-1.0)).shake()
    assert ends.well
    assert ends.say(b"1") == b""


def test_root_dropped_while_a_connection_begins_is_noticed(ca: Ca) -> None:
    """The change that falls between taking the context and remembering it ends the connection."""
    newer = Ca()
    ours = node(ca)
    calls = 0

    def newest() -> Generation:
        nonlocal calls
        calls += 1
        if calls == 2:
            ours.swap(newer.leaf().pair, newer.roots())
        return ours.generation

    ends = Ends(outsider(ca, ca.leaf("order")), server_context(newest, ours.now)).shake()
    assert ends.well
    assert ends.say(b"1") == b""


def test_server_says_goodbye_without_waiting_for_an_answer(ca: Ca) -> None:
    """An idle peer, or one whose next request crosses the goodbye, does not hold up the end."""
    for crossing in (b"", b"GET / HTTP/1.1"):
        ends = Ends(node(ca, "order").client(), node(ca).server()).shake()
        if crossing:
            ends.client.write(crossing)
        ends.server.unwrap()
        assert ends.client.read(10) == b""


def test_client_says_goodbye_as_usual(ca: Ca) -> None:
    """Only the server's side is in a hurry."""
    ends = Ends(node(ca, "order").client(), node(ca).server()).shake()
    with pytest.raises(ssl.SSLWantReadError):
        ends.client.unwrap()
    ends.server.unwrap()
    ends.client.unwrap()


def test_library_may_set_protocols_and_nothing_else(ca: Ca) -> None:
    """ALPN set on the live context is passed on; verification settings are not."""
    ours = node(ca)
    server = ours.server()
    server.verify_mode = ssl.CERT_NONE
    server.options = ssl.OP_ALL
    server.load_verify_locations(cadata=Ca().pem)
    server.set_alpn_protocols(["http/1.1"])
    caller = outsider(ca, ca.leaf("order"))
    caller.set_alpn_protocols(["h2", "http/1.1"])
    ends = Ends(caller, server).shake()
    assert ends.client.selected_alpn_protocol() == "http/1.1"
    assert Ends(outsider(ca, None), server).shake().server_error is not None
    ours.swap(ca.leaf().pair, ca.roots())
    assert Ends(caller, server).shake().client.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(None, None), (["h2"], "h2"), (["http/1.1"], "http/1.1"), (["h3"], None)],
    ids=["nothing", "h2", "http/1.1", "only what we do not speak"],
)
def test_peers_with_any_protocols_connect(
    ca: Ca, version: str, offered: list[str] | None, chosen: str | None
) -> None:
    """A peer without ALPN gets HTTP/1.1; one that offers ours gets it."""
    caller = outsider(ca, ca.leaf("order"), version)
    if offered:
        caller.set_alpn_protocols(offered)
    ends = Ends(caller, node(ca).server()).shake()
    assert ends.well
    assert ends.client.selected_alpn_protocol() == chosen


def test_upstream_without_protocols_is_called_all_the_same(ca: Ca) -> None:
    """Sidecars of tcp services offer none."""
    client = node(ca).client()
    client.set_alpn_protocols(["h2", "http/1.1"])
    ends = Ends(client, outside_server(ca, ca.leaf())).shake()
    assert ends.well and ends.client.selected_alpn_protocol() is None


def test_contexts_have_a_floor(ca: Ca) -> None:
    """TLS 1.2 at least, forward secrecy, no compression, no renegotiation, no tickets."""
    for role in ("server", "client"):
        context = node(ca).generation.context(role, ())  # type: ignore[arg-type]
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.verify_mode == ssl.CERT_REQUIRED
        for option in (ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION, ssl.OP_NO_TICKET):
            assert context.options & option
        for cipher in context.get_ciphers():
            assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-")
            assert cipher["aead"]


def test_new_generation_has_the_contexts_of_the_old_before_it_is_used(ca: Ca) -> None:
    """No handshake waits for a context to be built, and none is shared."""
    first = node(ca).generation
    first.context("client", ("http/1.1",))
    second = Generation(ca.leaf().pair, ca.roots(), 2, like=first)
    assert second._contexts.keys() == first._contexts.keys()
    assert not set(map(id, second._contexts.values())) & set(map(id, first._contexts.values()))


def test_context_made_while_the_next_generation_is_built_does_no_harm(
    ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first call to a new upstream may fall into the very millisecond of a rotation."""
    first = node(ca).generation
    make = tls._context

    def meanwhile(*args: Any) -> ssl.SSLContext:
        first._contexts.setdefault(("client", (f"p{len(first._contexts)}",)), make(*args))
        return make(*args)

    monkeypatch.setattr(tls, "_context", meanwhile)
    assert Generation(ca.leaf().pair, ca.roots(), 2, like=first).number == 2


@pytest.mark.parametrize("broken", ["key", "chain", "roots"])
def test_generation_that_openssl_refuses_is_a_certificate_error(ca: Ca, broken: str) -> None:
    """The old one stays then; the message shows no key."""
    pair = ca.leaf().pair
    if broken == "key":
        pair = KeyPair(pair.leaf, ca.leaf().key_pem)
    roots = ca.roots()
    if broken == "roots":
        roots = Roots(TRUST_DOMAIN, ("-----BEGIN CERTIFICATE-----\nMIIC\n",), "")
    if broken == "chain":
        object.__setattr__(pair.leaf, "chain_pem", "no PEM")
    with pytest.raises((CertificateError, ValueError)) as caught:
        Generation(pair, roots, 2)
    assert isinstance(caught.value, CertificateError)
    assert "PRIVATE" not in str(caught.value)


# -- before there is a leaf ------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("side", ["server", "client"])
def test_empty_generation_fails_in_the_handshake_and_not_before(
    ca: Ca, side: str, version: str
) -> None:
    """``wrap_bio`` must not raise: that would end Hypercorn's trio server."""
    for empty in (Node(), Node(None, ca.roots()), Node(ca.leaf().pair, None)):
        if side == "server":
            ends = Ends(outsider(ca, ca.leaf(), version), empty.server())
            assert isinstance(ends.shake().server_error, ssl.SSLError)
        else:
            ends = Ends(empty.client(), outside_server(ca, ca.leaf(), version))
            assert isinstance(ends.shake().client_error, ssl.SSLError)
        assert peer_of(ends.server) is None and peer_of(ends.client) is None


def test_context_made_before_the_leaf_serves_once_it_is_there(ca: Ca) -> None:
    """The server opens its sockets before the agent answers."""
    ours = Node()
    server, caller = ours.server(), outsider(ca, ca.leaf("order"))
    assert not Ends(caller, server).shake().well
    ours.swap(ca.leaf().pair, ca.roots())
    assert Ends(caller, server).shake().well


def test_closed_mesh_ends_handshakes_again(ca: Ca) -> None:
    """Back to the empty generation: nobody connects."""
    ours = node(ca)
    server, caller = ours.server(), outsider(ca, ca.leaf("order"))
    assert Ends(caller, server).shake().well
    ours.generation = Generation()
    assert not Ends(caller, server).shake().well


# -- resumption ------------------------------------------------------------------------------------


def test_no_tickets_are_given_out(ca: Ca) -> None:
    """TLS 1.3 sessions cannot be resumed, and TLS 1.2 ones have no ticket."""
    for version in VERSIONS:
        ends = Ends(outsider(ca, ca.leaf("order"), version), node(ca).server()).shake()
        ends.answer(b"whatever else the server had to say comes before this")
        session = ends.client.session
        assert session is None or not session.has_ticket


def _session(caller: ssl.SSLContext, server: ssl.SSLContext) -> Any:
    """A session that the server would resume: the connection was ended in good order."""
    ends = Ends(caller, server).shake()
    assert ends.well and ends.client.session is not None
    assert ends.client.session.id
    for end in (ends.client, ends.server, ends.client):
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLSyscallError):
            end.unwrap()
    return ends.client.session


def test_session_of_tls_1_2_does_not_outlive_its_root(ca: Ca) -> None:
    """A caller whose root was dropped does not come back by resuming an old session."""
    newer = Ca()
    ours, caller = node(ca), plain_context("client", [ca, newer], ca.leaf("order"))
    only(caller, "1.2")
    server = ours.server()
    session = _session(caller, server)
    ours.swap(newer.leaf().pair, newer.roots())
    ends = Ends(caller, server, session).shake()
    assert isinstance(ends.server_error, ssl.SSLError)
    assert not ends.server.session_reused
    assert peer_of(ends.server) is None


def test_resumed_session_passes_the_gate_like_any_other(ca: Ca) -> None:
    """Within one generation a session may be resumed; the gate judges its certificate again."""
    ours, caller = node(ca), outsider(ca, ca.leaf("order"), "1.2")
    server = ours.server()
    session = _session(caller, server)
    ends = Ends(caller, server, session).shake()
    assert ends.well and ends.client.session_reused
    peer = peer_of(ends.server)
    assert peer is not None and peer.id.uri == service_uri("order")
    ours.moment = NOW + 2 * HOUR
    again = Ends(caller, server, session).shake()
    assert isinstance(again.server_error, GateError)
    assert peer_of(again.server) is None


def test_session_cannot_be_carried_to_another_identity(ca: Ca) -> None:
    """Who resumes a session is who began it, not whom the new context would show."""
    ours, caller = node(ca), outsider(ca, ca.leaf("order"), "1.2")
    server = ours.server()
    session = _session(caller, server)
    ends = Ends(caller, server, session).shake()
    peer = peer_of(ends.server)
    assert peer is not None and peer.id.uri == service_uri("order")


def test_our_client_resumes_nothing(ca: Ca) -> None:
    """Each connection of ours is a full handshake."""
    client = node(ca).client()
    upstream = outside_server(ca, ca.leaf())
    with Listener(upstream) as listener, listener.connect() as plain:
        with client.wrap_socket(plain) as first:
            session = first.session
            first.sendall(b"1")
    with Listener(upstream) as listener, listener.connect() as plain:
        with client.wrap_socket(plain, session=session) as second:  # type: ignore[arg-type]
            assert not second.session_reused
            second.sendall(b"2")


# -- sockets ---------------------------------------------------------------------------------------


def test_listening_socket_accepts_with_the_newest_generation(ca: Ca) -> None:
    """Wrapped once before there was a leaf; each accepted connection gets the newest."""
    ours = Node()
    with socket.create_server(("127.0.0.1", 0)) as plain:
        plain.settimeout(PATIENCE)
        listening = ours.server().wrap_socket(plain, server_side=True)
        with listening, ThreadPoolExecutor(1) as pool:
            for pair in (ca.leaf().pair, ca.leaf().pair):
                ours.swap(pair, ca.roots())
                accepted = pool.submit(listening.accept)
                made = socket.create_connection(listening.getsockname(), PATIENCE)
                with outsider(ca, ca.leaf("order")).wrap_socket(made) as caller:
                    connection, _ = accepted.result(PATIENCE)
                    with connection:
                        found = caller.getpeercert()
                        assert found is not None
                        serial = str(found["serialNumber"]).lower().lstrip("0")
                        assert serial == pair.leaf.serial_number
                        peer = peer_of(connection)
                        assert peer is not None and peer.id.uri == service_uri("order")


def test_accepting_a_refused_caller_is_an_error_and_not_the_end(ca: Ca) -> None:
    """The listening socket goes on; the refused connection is closed."""
    ours = node(ca)
    with socket.create_server(("127.0.0.1", 0)) as plain:
        plain.settimeout(PATIENCE)
        listening = ours.server().wrap_socket(plain, server_side=True)
        with listening, ThreadPoolExecutor(1) as pool:
            for made, well in ((ca.leaf(uris=[]), False), (ca.leaf("order"), True)):
                accepted = pool.submit(listening.accept)
                raw = socket.create_connection(listening.getsockname(), PATIENCE)
                with outsider(ca, made).wrap_socket(raw) as caller:
                    if well:
                        accepted.result(PATIENCE)[0].close()
                        continue
                    with pytest.raises(GateError):
                        accepted.result(PATIENCE)
                    assert _is_over(caller)


def _is_over(caller: ssl.SSLSocket) -> bool:
    """With TLS 1.3 the client learns of its refusal by the end of the connection."""
    try:
        return caller.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def test_handshake_may_be_put_off_until_the_server_asks(ca: Ca) -> None:
    """As Gunicorn does: the connection is wrapped first and shaken later, in its worker."""
    ours = node(ca)
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(PATIENCE)
    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(outsider(ca, ca.leaf("order")).wrap_socket, ends[0])
        server = ours.server().wrap_socket(ends[1], server_side=True, do_handshake_on_connect=False)
        assert peer_of(server) is None
        server.do_handshake()
        peer = peer_of(server)
        assert peer is not None and peer.id.uri == service_uri("order")
        with server, caller.result(PATIENCE) as client:
            client.sendall(b"hello")
            assert server.recv(100) == b"hello"


def test_socket_that_does_not_block_cannot_shake_hands_at_once(ca: Ca) -> None:
    """As in the standard library: a mistake of the caller's, said so."""
    one, two = socket.socketpair()
    with one, two:
        one.setblocking(False)
        with pytest.raises(ValueError, match="blocking"):
            node(ca).client().wrap_socket(one)


def test_refused_connection_is_closed(ca: Ca) -> None:
    """No half-open socket is left for the caller to trip over."""
    with Listener(outside_server(ca, ca.leaf("order"))) as wrong, wrong.connect() as plain:
        with pytest.raises(GateError):
            node(ca).client().wrap_socket(plain)
        assert plain.fileno() == -1
        wrong.served.result(PATIENCE)


def test_asyncio_server_never_calls_its_handler_for_a_refused_caller(ca: Ca) -> None:
    """The whole way through asyncio's own TLS: one is served, one is not."""

    async def scenario() -> None:
        handled: list[str] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = peer_of(writer.get_extra_info("ssl_object"))
            handled.append(peer.id.uri if peer else "nobody")
            writer.write(b"x")
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=node(ca).server())
        port = server.sockets[0].getsockname()[1]
        for made in (ca.leaf(uris=[]), ca.leaf("order", uris=None), None):
            try:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=outsider(ca, made), server_hostname=""
                )
                await reader.read()
                writer.close()
            except (ssl.SSLError, ConnectionError):
                pass
        await close_server(server)
        await server.wait_closed()
        assert handled == [service_uri("order")]

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


# -- the binding -----------------------------------------------------------------------------------


@pytest.fixture
def established(ca: Ca) -> Ends:
    """A connection whose server knows that order calls."""
    return Ends(node(ca, "order").client(), node(ca).server()).shake()


def test_peer_is_bound_in_the_connections_own_task(established: Ends) -> None:
    """Asked for the protocol inside a task, the server's object binds its peer there."""

    async def connection() -> str | None:
        established.server.selected_alpn_protocol()

        async def request() -> str | None:
            peer = current_peer()
            return peer.id.uri if peer else None

        return await asyncio.create_task(request())

    async def other() -> Any:
        return current_peer()

    async def scenario() -> None:
        assert await asyncio.create_task(connection()) == service_uri("order")
        assert await asyncio.create_task(other()) is None
        assert current_peer() is None

    asyncio.run(scenario())


def test_peer_is_not_bound_in_a_bare_callback(established: Ends) -> None:
    """Callbacks of different connections can share one context: what is set there leaks."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[Any] = loop.create_future()

        def callback() -> None:
            established.server.selected_alpn_protocol()
            seen.set_result(current_peer())

        loop.call_soon(callback)
        assert await seen is None
        assert current_peer() is None

    asyncio.run(scenario())


def test_peer_is_not_bound_outside_any_loop(established: Ends) -> None:
    """A thread without a task is nobody's connection."""
    established.server.selected_alpn_protocol()
    assert current_peer() is None


def test_clients_object_binds_nothing(established: Ends) -> None:
    """Whom we call is not who calls us, though both are asked for in a task."""

    async def scenario() -> None:
        established.client.selected_alpn_protocol()
        assert current_peer() is None

    asyncio.run(scenario())


def test_peer_is_bound_in_a_trio_task(established: Ends) -> None:
    """The same on trio: in the task, inherited by its children, and nowhere else."""
    seen: list[str | None] = []

    async def request() -> None:
        peer = current_peer()
        seen.append(peer.id.uri if peer else None)

    async def connection() -> None:
        established.server.selected_alpn_protocol()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request)

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection)
        await request()

    trio.run(scenario)
    assert seen == [service_uri("order"), None]


def test_refused_connection_binds_nobody(ca: Ca) -> None:
    """A server that goes on after a refused handshake still has no peer."""
    ends = Ends(outsider(ca, ca.leaf(uris=[])), node(ca).server()).shake()

    async def scenario() -> None:
        ends.server.selected_alpn_protocol()
        assert current_peer() is None

    asyncio.run(scenario())


def test_binding_replaces_the_connection_before(ca: Ca, established: Ends) -> None:
    """A task that serves one connection after the other never keeps the last one's peer."""
    refused = Ends(outsider(ca, ca.leaf(uris=[])), node(ca).server()).shake()

    async def scenario() -> None:
        established.server.selected_alpn_protocol()
        assert current_peer() is not None
        refused.server.selected_alpn_protocol()
        assert current_peer() is None

    asyncio.run(scenario())


def test_objects_of_other_contexts_have_no_peer(ca: Ca) -> None:
    """Only what one of our contexts made says who is there."""
    ends = Ends(node(ca).client(), outside_server(ca, ca.leaf())).shake()
    assert peer_of(ends.server) is None
    assert peer_of(object()) is None
    assert peer_of(None) is None


# -- the key ---------------------------------------------------------------------------------------


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that only this test uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path


def test_key_in_memory_leaves_nothing_behind(ca: Ca, temporary: Path) -> None:
    """No file, no descriptor, whether it worked or not."""
    pair, other = ca.leaf().pair, ca.leaf().key_pem
    before = _descriptors()
    Generation(pair, ca.roots(), 1)
    with pytest.raises(CertificateError):
        Generation(KeyPair(pair.leaf, other), ca.roots(), 1)
    assert _descriptors() == before
    assert list(temporary.iterdir()) == []


def test_key_never_touches_the_disk_where_memory_will_do(temporary: Path) -> None:
    """The path that OpenSSL reads is a descriptor of this process, closed to its children."""
    with tls._private_file("secret") as path:
        assert path.startswith("/proc/self/fd/")
        assert Path(path).read_text() == "secret"
        assert list(temporary.iterdir()) == []
        assert not os.get_inheritable(int(path.rpartition("/")[2]))


def test_key_file_is_private_and_removed_where_there_is_no_memfd(
    ca: Ca, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere than Linux: a 0600 file that is gone when OpenSSL has read it."""
    monkeypatch.delattr(os, "memfd_create")
    with tls._private_file("secret") as path:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert Path(path).read_text() == "secret"
    assert list(temporary.iterdir()) == []
    ours = node(ca)
    with pytest.raises(CertificateError):
        Generation(KeyPair(ca.leaf().pair.leaf, ca.leaf().key_pem), ca.roots(), 1)
    assert list(temporary.iterdir()) == []
    assert Ends(outsider(ca, ca.leaf("order")), ours.server()).shake().well


def test_gate_error_is_what_tls_libraries_expect() -> None:
    """A subclass of the error that servers and clients handle already, with its reason."""
    error = GateError("reason")
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert isinstance(error, OSError)
    assert "reason" in str(error)
    assert error.mismatch is None
