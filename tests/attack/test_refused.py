"""Who is refused in the handshake is counted and told: servers themselves say nothing of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mesh_middleware import Mesh
from mesh_middleware.refusals import CODES

from ..interop.callers import knock, outsider_context
from ..interop.conftest import Serve
from ..support.doors import Inside
from ..support.handshakes import Ends
from ..support.pages import DOCS

TOMORROW = datetime.now(UTC) + timedelta(days=1)
YESTERDAY = datetime.now(UTC) - timedelta(days=1)

WRONG: dict[str, tuple[dict[str, Any] | None, str, str]] = {
    "nobody": (None, "no_certificate", "the caller showed no certificate"),
    "stranger": ({"foreign": True}, "untrusted", "unable to get local issuer certificate"),
    "expired": (
        {"not_before": YESTERDAY, "lifetime": timedelta(hours=1)},
        "expired",
        "certificate has expired",
    ),
    "early": ({"not_before": TOMORROW}, "not_yet_valid", "certificate is not yet valid"),
    "usage": ({"usages": ("server",)}, "untrusted", ""),
    "nameless": ({"uris": ()}, "identity", "0 URI names; an X.509-SVID has exactly one"),
    "elsewhere": ({"trust_domain": "other.consul"}, "identity", "trust domain is not"),
    "hostile": ({"uris": ("spiffe://x/\r\nforged",)}, "identity", ""),
}


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    with Inside() as inside:
        yield inside


@pytest.mark.parametrize("who", sorted(WRONG))
def test_a_refused_handshake_is_counted_and_told_once(
    who: str, inside: Inside, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice counted, once told; in one line, whatever stands in the certificate."""
    options, code, detail = WRONG[who]
    pem = None if options is None else "".join(inside.agent.issue("invoice", **options))
    before = inside.mesh.status()["handshakes_refused"].get(code, 0)
    with caplog.at_level(logging.INFO, "mesh_middleware.tls"):
        for _ in range(2):
            ends = Ends(outsider_context(pem), inside.mesh.server_context()).shake()
            assert ends.server_error is not None
    assert inside.mesh.status()["handshakes_refused"][code] == before + 2
    assert f'mesh_handshakes_refused_total{{service="tax",code="{code}"}}' in inside.mesh.metrics()
    (line,) = caplog.messages
    assert line.startswith(f"handshake refused: {code}: ") and detail in line
    assert line.isprintable()


def test_what_is_no_tls_is_no_alarm(inside: Inside, caplog: pytest.LogCaptureFixture) -> None:
    """Port scans, and plain HTTP: counted, and told below a warning."""
    ends = Ends(outsider_context(None), inside.mesh.server_context())
    ends.to_server.write(b"GET / HTTP/1.1\r\nHost: tax\r\n\r\n")
    with caplog.at_level(logging.INFO, "mesh_middleware.tls"):
        with pytest.raises(OSError):
            ends.server.do_handshake()
    assert inside.mesh.status()["handshakes_refused"]["tls"] == 1
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_before_there_is_a_leaf_it_is_our_fault(inside: Inside) -> None:
    """Nobody is to look for the mistake in the caller's certificate."""
    mesh = Mesh("early", agent=inside.agent.url)
    Ends(outsider_context(None), mesh.server_context()).shake()
    assert mesh.status()["handshakes_refused"] == {"not_ready": 1}


def test_a_good_handshake_is_no_refusal(inside: Inside) -> None:
    """It takes several rounds, none of which counts."""
    before = inside.mesh.status()["handshakes_refused"]
    assert inside.connect().well
    assert inside.mesh.status()["handshakes_refused"] == before


@pytest.mark.process
@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_every_worker_tells_it(worker: str, serve: Serve) -> None:
    """The real servers, which say nothing of their own."""
    server = serve(worker_class=worker)
    assert knock(server.port(), None) == b""
    server.wait_output("handshake refused: no_certificate: the caller showed no certificate")


def test_every_code_is_in_the_reference() -> None:
    """The page on status and metrics explains each of them, and each has happened here."""
    assert {code for _, code, _ in WRONG.values()} | {"tls", "not_ready"} == set(CODES)
    page = (DOCS / "reference" / "status.md").read_text()
    assert [code for code in CODES if f"| `{code}` |" not in page] == []
