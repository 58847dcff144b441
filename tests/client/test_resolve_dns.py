"""Instances told by DNS: what is asked, what is believed of it, and who has to answer."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import httpx
import pytest

from mesh_middleware.exceptions import ConfigError, ResolveError
from mesh_middleware.httpx import NoHealthyInstanceError, UpstreamMismatchError
from mesh_middleware.resolve import Endpoint, Upstream
from mesh_middleware.resolve_dns import DnsName, DnsResolver

from ..support.consul import RealConsul, free_ports
from ..support.servers import until
from .driver import Driver
from .support import PATIENCE, Authority, StaticMesh, answering, service_id, serving

TAX = service_id("tax")
SRV = DnsName("_tax._tcp.example.", TAX)
Record = tuple[str, str, str]
"""Name, type, text of a record."""


class Zone:
    """A nameserver of the test: real UDP, answers as the test says."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.additional: list[Record] = []
        self.failing = False
        self.hours: set[str] = set()
        self.names: list[str] = []
        zone = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, sock = self.request
                sock.sendto(zone.answer(data), self.client_address)

        self._server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def answer(self, data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        reply = dns.message.make_response(query)
        name, kind = str(query.question[0].name), query.question[0].rdtype.name
        self.names.append(name)
        if self.failing:
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif not any(record[0] == name for record in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        ttl = 3600 if name in self.hours else 0
        for section, records in ((reply.answer, self.records), (reply.additional, self.additional)):
            texts: dict[tuple[str, str], list[str]] = {}
            for owner, is_kind, text in records if not self.failing else ():
                if section is reply.additional or (owner, is_kind) == (name, kind):
                    texts.setdefault((owner, is_kind), []).append(text)
            section += [dns.rrset.from_text(*key[:1], ttl, "IN", key[1], *found)
                        for key, found in texts.items()]  # fmt: skip
        return reply.to_wire()

    def resolver(self, **names: DnsName) -> DnsResolver:
        """Ask this one."""
        return DnsResolver(names, nameservers=["127.0.0.1"], port=self.port, timeout=1.0)

    def __enter__(self) -> Zone:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()


@pytest.fixture
def zone() -> Iterator[Zone]:
    """A nameserver that knows nothing yet."""
    with Zone() as zone:
        yield zone


def look(zone: Zone, name: DnsName) -> tuple[Endpoint, ...]:
    """What is found at first."""
    with zone.resolver(tax=name) as resolver:
        assert not resolver.ready(Upstream("tax"))
        resolver.wait(Upstream("tax"), PATIENCE)
        return tuple(resolver.resolve(Upstream("tax")))


def test_srv_records_tell_address_port_and_weight(zone: Zone) -> None:
    """With the priority, weights in proportion; addresses that came along are taken, others
    are asked for; the identity is the configured one."""
    zone.records = [
        (SRV.name, "SRV", "1 100 8443 a.example."),
        (SRV.name, "SRV", "1 50 8444 b.example."),
        (SRV.name, "SRV", "1 0 8445 a.example."),
        (SRV.name, "SRV", "2 100 9999 spare.example."),
        ("spare.example.", "A", "10.0.0.9"),
        ("b.example.", "A", "10.0.0.2"),
        ("b.example.", "AAAA", "fd00::2"),
    ]
    zone.additional = [("A.example.", "A", "10.0.0.1")]
    assert look(zone, SRV) == (
        Endpoint("10.0.0.1", 8443, TAX, 100, priority=1),
        Endpoint("10.0.0.1", 8445, TAX, 1, priority=1),
        Endpoint("10.0.0.2", 8444, TAX, 50, priority=1),
        Endpoint("10.0.0.9", 9999, TAX, 100, priority=2),
        Endpoint("fd00::2", 8444, TAX, 50, priority=1),
    )


def test_large_weights_are_scaled(zone: Zone) -> None:
    """DNS counts to 65535, an instance weighs 128 at most."""
    zone.records = [
        (SRV.name, "SRV", "0 65535 1 a.example."),
        (SRV.name, "SRV", "0 6553 2 a.example."),
        ("a.example.", "A", "10.0.0.1"),
    ]
    assert [one.weight for one in look(zone, SRV)] == [128, 12]


def test_addresses_have_the_configured_port(zone: Zone) -> None:
    """A and AAAA; a sidecar may stand there."""
    zone.records = [("tax.example.", "A", "10.0.0.1"), ("tax.example.", "AAAA", "fd00::1")]
    found = look(zone, DnsName("tax.example.", TAX.uri, 8443, "sidecar"))
    assert found == (
        Endpoint("10.0.0.1", 8443, TAX, kind="sidecar"),
        Endpoint("fd00::1", 8443, TAX, kind="sidecar"),
    )


@pytest.mark.parametrize(
    "records", [[], [(SRV.name, "SRV", "0 0 0 .")], [(SRV.name, "TXT", "x")]], ids=str
)
def test_none_is_an_answer(zone: Zone, records: list[Record]) -> None:
    """No such name, no such record, or a record that says so: there is no instance."""
    zone.records = records
    assert look(zone, SRV) == ()


def test_a_failure_changes_nothing_and_what_is_new_comes(zone: Zone) -> None:
    """While the nameserver fails the last instances stay; asked again when their time is over."""
    zone.records = [("tax.example.", "A", "10.0.0.1")]
    with zone.resolver(tax=DnsName("tax.example.", TAX, 1)) as resolver:
        resolver.wait(Upstream("tax"), PATIENCE)
        zone.failing = True
        asked = len(zone.names)
        until(lambda: len(zone.names) > asked + 2, "questions that fail")
        assert [one.host for one in resolver.resolve(Upstream("tax"))] == ["10.0.0.1"]
        zone.records = [("tax.example.", "A", "10.0.0.2")]
        zone.failing = False
        until(
            lambda: [one.host for one in resolver.resolve(Upstream("tax"))] == ["10.0.0.2"],
            "the new instance",
        )


def test_the_time_an_answer_holds_is_kept(zone: Zone) -> None:
    """A name with a TTL of an hour is asked for once while one with none is, again and again."""
    zone.records = [("a.example.", "A", "10.0.0.1"), ("b.example.", "A", "10.0.0.2")]
    zone.hours = {"a.example."}
    names = {"a": DnsName("a.example.", TAX, 1), "b": DnsName("b.example.", TAX, 1)}
    with zone.resolver(**names) as resolver:
        for name in names:
            resolver.wait(Upstream(name), PATIENCE)
        until(lambda: zone.names.count("b.example.") > 4, "the third look at the other")
        assert zone.names.count("a.example.") == 2, "A and AAAA"


def test_a_nameserver_that_is_away_is_told(mesh: StaticMesh, driver: Driver) -> None:
    """Nobody answers: after the connect timeout an error that says what was asked for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        resolver = DnsResolver(
            {"tax": SRV}, nameservers=["127.0.0.1"], port=silent.getsockname()[1], timeout=0.1
        )
        with resolver, driver.client(mesh, resolver=resolver) as client:
            with pytest.raises(NoHealthyInstanceError, match=r"does not tell _tax\._tcp\.example"):
                client.get("https://tax/", timeout=httpx.Timeout(5, connect=0.5))


def test_calls_go_where_dns_says_and_only_to_whom_the_configuration_names(
    authority: Authority, mesh: StaticMesh, driver: Driver, zone: Zone
) -> None:
    """The first call waits for the answer. One that leads to somebody else leads nowhere."""
    with serving(authority, answering(b"rates")) as server:
        zone.records = [
            (SRV.name, "SRV", f"0 1 {server.port} a.example."),
            ("a.example.", "A", "127.0.0.1"),
        ]
        resolver = zone.resolver(tax=SRV, other=DnsName(SRV.name, service_id("other")))
        with resolver, driver.client(mesh, resolver=resolver) as client:
            assert client.get("https://tax/").text == "rates"
            assert client.get("https://tax.service.consul/").text == "rates"
            with pytest.raises(UpstreamMismatchError):
                client.get("https://other/")
            for host in ("unknown", "tax.service.dc2.consul", "tax.query.consul"):
                with pytest.raises(NoHealthyInstanceError):
                    client.get(f"https://{host}/")


def test_the_next_priority_is_called_when_the_lowest_cannot_be_reached(
    authority: Authority, mesh: StaticMesh, driver: Driver, zone: Zone
) -> None:
    """And not before: RFC 2782."""
    with (
        serving(authority, answering(b"spare")) as spare,
        serving(authority, answering(b"first")) as first,
    ):
        zone.records = [
            (SRV.name, "SRV", f"10 1 {first.port} a.example."),
            (SRV.name, "SRV", f"20 1 {spare.port} a.example."),
            ("a.example.", "A", "127.0.0.1"),
        ]
        resolver = zone.resolver(tax=SRV)
        with resolver, driver.client(mesh, resolver=resolver) as client:
            assert {client.get("https://tax/").text for _ in range(20)} == {"first"}
            first.__exit__()
            headers = {"connection": "close"}
            found = [client.get("https://tax/", headers=headers).text for _ in range(20)]
            assert set(found) == {"spare"}


def test_what_was_not_configured_is_refused(zone: Zone) -> None:
    """Names, scopes and queries that DNS was not told of are errors at once; so is an identity
    that is none."""
    with zone.resolver(tax=SRV) as resolver:
        for upstream in (
            Upstream("other"),
            Upstream("tax", "dc2"),
            Upstream("tax", namespace="team"),
            Upstream("tax", kind="query"),
        ):
            assert resolver.ready(upstream)
            resolver.wait(upstream, PATIENCE)
            with pytest.raises(ResolveError):
                resolver.resolve(upstream)
    assert zone.names == []
    with pytest.raises(ConfigError, match="who has to answer"):
        DnsResolver({"tax": DnsName("tax.example.", "spiffe://x/y")})


# From Python 3.12 on a fork beside threads is warned of, and that is what this test is about.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_it_closes_twice_and_starts_again(zone: Zone) -> None:
    """Its thread ends with it; who asks afterwards starts another. A child process has its own."""
    zone.records = [("tax.example.", "A", "10.0.0.1")]
    resolver, upstream = zone.resolver(tax=DnsName("tax.example.", TAX, 1)), Upstream("tax")
    for _ in range(2):
        resolver.wait(upstream, PATIENCE)
        assert len(resolver.resolve(upstream)) == 1
        child = os.fork()
        if child == 0:
            os._exit(_ask_in_child(resolver))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        resolver.close()
        resolver.close()
        assert not [t for t in threading.enumerate() if t.name == "mesh_middleware_dns"]


def _ask_in_child(resolver: DnsResolver) -> int:
    try:
        resolver.wait(Upstream("tax"), PATIENCE)
        return 0 if len(resolver.resolve(Upstream("tax"))) == 1 else 1
    except BaseException:
        return 2


@pytest.mark.process
def test_a_real_consul_is_asked_by_dns() -> None:
    """Consul's own DNS: ``tax.connect.consul`` has the native instances, and the sidecars."""
    (port,) = free_ports(1)
    with RealConsul(dns=port) as consul, httpx.Client(base_url=consul.url) as agent:
        native: dict[str, Any] = {
            "Name": "tax",
            "Address": "127.0.0.1",
            "Connect": {"Native": True},
        }
        for number in (1, 2):
            body = native | {"ID": f"tax-{number}", "Port": 8000 + number}
            agent.put("/v1/agent/service/register", json=body).raise_for_status()
        names = {"tax": DnsName("tax.connect.consul.", TAX)}
        with DnsResolver(names, nameservers=["127.0.0.1"], port=port) as resolver:
            resolver.wait(Upstream("tax"), PATIENCE)
            both = tuple(Endpoint("127.0.0.1", port, TAX, priority=1) for port in (8001, 8002))
            assert resolver.resolve(Upstream("tax")) == both
            agent.put("/v1/agent/service/deregister/tax-1").raise_for_status()
            began = time.monotonic()
            until(lambda: resolver.resolve(Upstream("tax")) == both[1:], "the end of one")
            assert time.monotonic() - began < 5
