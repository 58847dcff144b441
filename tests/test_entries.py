"""The entries a service is judged by are followed: protocol, normalization, tokens, keys."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mesh_middleware import Mesh, ServiceId
from mesh_middleware.certificates import Peer
from mesh_middleware.dev import DevAgent
from mesh_middleware.entries import PREPARE
from mesh_middleware.intentions import Decision, HttpFacts
from mesh_middleware.rhythm import Rhythm
from mesh_middleware.snapshot import Snapshot

from .support.consul import RealConsul
from .support.servers import until

PATIENCE = 20.0
KEEP_KEY = "ab" * 32


class Issuer:
    """Signs tokens, and answers for its keys over HTTP; what it publishes can be changed."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.kid = "1"
        self.asked = 0
        self.answer: Callable[[], bytes] = lambda: json.dumps(self.jwks()).encode()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                body = issuer.answer()
                self.send_response(200 if body else 500)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(5)

    def jwks(self) -> dict[str, Any]:
        public: Any = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": self.kid, "use": "sig"}]}

    def roll(self) -> None:
        """Sign with a new key from now on, and publish only that."""
        self.key, self.kid = ec.generate_private_key(ec.SECP256R1()), str(int(self.kid) + 1)

    def token(self, **claims: Any) -> str:
        body = {"iss": "me", "sub": "ann", "exp": int(time.time()) + 600} | claims
        return jwt.encode(body, self.key, "ES256", headers={"kid": self.kid})

    def local(self) -> dict[str, Any]:
        keys = base64.b64encode(json.dumps(self.jwks()).encode()).decode()
        return self.entry(Local={"JWKS": keys})

    def remote(self, **fields: Any) -> dict[str, Any]:
        return self.entry(Remote={"URI": self.url} | fields)

    @staticmethod
    def entry(**keys: Any) -> dict[str, Any]:
        return {"Kind": "jwt-provider", "Name": "okta", "Issuer": "me", "JSONWebKeySet": keys}


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def join(mesh_agent: DevAgent) -> Iterator[Callable[..., Mesh]]:
    """Starts meshes of service tax, which end with the test."""
    made: list[Mesh] = []

    def join(**options: Any) -> Mesh:
        mesh = Mesh("tax", **{"agent": mesh_agent.url, "plugins": ()} | options)
        made.append(mesh.start())
        assert mesh.ready(PATIENCE)
        return mesh

    yield join
    for mesh in made:
        mesh.close()


def decide(mesh: Mesh, token: str | None = None, target: bytes = b"/") -> Decision:
    """Judge a request of invoice."""
    roots = mesh.snapshot.roots
    assert roots is not None
    lines = [(b"host", b"tax")]
    if token is not None:
        lines.append((b"authorization", b"Bearer " + token.encode()))
    source = ServiceId(roots.trust_domain, "default", "dc1", "invoice")
    peer = Peer(source, "01", datetime.now(UTC) + timedelta(minutes=1))
    return mesh.decide(peer, HttpFacts(b"GET", target, lines))


def providers(snapshot: Snapshot) -> int:
    """How many jwt-providers have keys."""
    return sum(item.keys is not None for item in snapshot.conditions.providers)


def demand(agent: DevAgent, entry: dict[str, Any]) -> None:
    """Let invoice call tax with a token of okta alone."""
    agent.put_entry(entry)
    source = {"Name": "invoice", "Action": "allow"}
    jwt = {"Providers": [{"Name": "okta"}]}
    agent.put_entry({"Kind": "service-intentions", "Name": "tax", "Sources": [source], "JWT": jwt})


def join_demanding(
    agent: DevAgent, join: Callable[..., Mesh], entry: dict[str, Any], **options: Any
) -> Mesh:
    """Start tax, which demands a token of okta and has okta's keys."""
    agent.set_protocol("tax", "http")
    demand(agent, entry)
    mesh = join(**options)
    assert mesh.wait_for(lambda s: providers(s) == 1, PATIENCE)
    return mesh


def permit(agent: DevAgent, path: str) -> None:
    agent.permissions(
        "invoice",
        "tax",
        [
            {"Action": "allow", "HTTP": {"PathExact": path}},
            {"Action": "deny", "HTTP": {"PathPrefix": "/"}},
        ],
    )


# -- protocol and normalization --------------------------------------------------------------------


def test_the_protocol_moves_judging_between_connection_and_request(
    mesh_agent: DevAgent, join: Callable[..., Mesh], issuer: Issuer
) -> None:
    """On tcp ``envoy`` asks for no token; service-defaults http asks for it at once."""
    demand(mesh_agent, issuer.local())
    mesh = join(reading="envoy", default_policy="deny")
    assert mesh.status()["protocol"] == "tcp"
    assert decide(mesh).reason == "intention_allow"
    mesh_agent.set_protocol("tax", "http")
    assert mesh.wait_for(lambda s: s.conditions.protocol == "http", PATIENCE)
    assert decide(mesh).reason == "jwt_missing"
    mesh_agent.set_protocol("tax", "tcp")
    assert mesh.wait_for(lambda s: s.conditions.protocol == "tcp", PATIENCE)
    assert decide(mesh).reason == "intention_allow"


def test_proxy_defaults_count_where_the_service_says_nothing(
    mesh_agent: DevAgent, join: Callable[..., Mesh]
) -> None:
    """The shared protocol is followed, too."""
    mesh = join()
    shared = {"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http2"}}
    mesh_agent.put_entry(shared)
    assert mesh.wait_for(lambda s: s.conditions.protocol == "http2", PATIENCE)
    mesh_agent.set_protocol("tax", "tcp")
    assert mesh.wait_for(lambda s: s.conditions.protocol == "tcp", PATIENCE)


def test_no_request_is_judged_before_the_protocol_is_known(
    mesh_agent: DevAgent, issuer: Issuer
) -> None:
    """Not ready while the entries do not answer: judging by the wrong protocol could allow."""
    demand(mesh_agent, issuer.local())
    mesh_agent.set_protocol("tax", "http")
    fault = mesh_agent.faults.begin("stall", "/v1/config/service-defaults")
    with Mesh("tax", agent=mesh_agent.url, plugins=()) as mesh:
        assert mesh.wait_for(lambda s: s.joined and s.default_allow is not None, PATIENCE)
        assert not mesh.wait_for(lambda s: s.policy is not None, PREPARE + 0.5)
        assert decide(mesh).reason == "no_policy"
        fault.end()
        assert mesh.ready(PATIENCE)
        assert decide(mesh).reason == "jwt_missing"


def test_a_token_that_may_not_read_the_entries_is_told(
    mesh_agent: DevAgent, join: Callable[..., Mesh]
) -> None:
    """A 403 counts as no entry, with a note; a protocol nobody tells counts as http by requests."""
    mesh_agent.set_protocol("tax", "http")
    permit(mesh_agent, "/a")
    fault = mesh_agent.faults.begin("forbid", "/v1/config/mesh")
    mesh = join()
    assert "entry_refused" in [code for _, code, _ in mesh.status()["notes"]]
    assert decide(mesh, target=b"/a").allowed
    fault.end()


def test_the_mesh_entrys_normalization_is_honoured_in_envoys_reading(
    mesh_agent: DevAgent, join: Callable[..., Mesh]
) -> None:
    """Slashes are merged once the mesh entry says so; strict still wants every reading."""
    mesh_agent.set_protocol("tax", "http")
    permit(mesh_agent, "/a/b")
    envoy, strict = join(reading="envoy"), join()
    assert decide(envoy, target=b"/a//b").reason == "permission_deny"
    normalization = {"RequestNormalization": {"MergeSlashes": True}}
    mesh_agent.put_entry({"Kind": "mesh", "Name": "mesh", "HTTP": {"Incoming": normalization}})
    for mesh in (envoy, strict):
        assert mesh.wait_for(lambda s: s.conditions.normalization.merge_slashes, PATIENCE)
    assert decide(envoy, target=b"/a//b").reason == "permission_allow"
    assert decide(strict, target=b"/a//b").reason == "readings_differ"


@pytest.mark.process
def test_an_old_consul_without_these_kinds_is_no_trouble(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The real 1.8: ready, no trouble, the missing kind told once; its protocol is followed."""
    with caplog.at_level(logging.INFO, "mesh_middleware.watch"), RealConsul() as consul:
        with Mesh("tax", agent=consul.url, plugins=()) as mesh:
            assert mesh.ready(PATIENCE)
            assert mesh.status()["protocol"] == "tcp"
            entry = {"Kind": "service-defaults", "Name": "tax", "Protocol": "http"}
            assert httpx.put(f"{consul.url}/v1/config", json=entry).status_code == 200
            assert mesh.wait_for(lambda s: s.conditions.protocol == "http", PATIENCE)
            assert mesh.status()["troubles"] == {}
    told = [line for line in caplog.messages if "knows no mesh entries" in line]
    assert len(told) == 1


# -- tokens ----------------------------------------------------------------------------------------


def test_a_provider_that_an_intention_names_is_followed(
    mesh_agent: DevAgent, join: Callable[..., Mesh], issuer: Issuer
) -> None:
    """Fetched when it is named, replaced when it changes, forgotten when nobody names it."""
    mesh = join_demanding(mesh_agent, join, issuer.local())
    verdict = decide(mesh, issuer.token(sub="ann"))
    assert (verdict.reason, (verdict.claims or {})["okta"]["sub"]) == ("intention_allow", "ann")
    old = issuer.token()
    issuer.roll()
    mesh_agent.put_entry(issuer.local())
    until(lambda: decide(mesh, issuer.token()).allowed, "the new key")
    assert decide(mesh, old).reason == "jwt_invalid"
    mesh_agent.delete("invoice", "tax")
    assert mesh.wait_for(lambda s: not s.conditions.providers, PATIENCE)


def test_a_provider_that_cannot_be_read_denies_and_is_told(
    mesh_agent: DevAgent, join: Callable[..., Mesh], issuer: Issuer
) -> None:
    """Its tokens do not count; the note names the part."""
    mesh_agent.set_protocol("tax", "http")
    demand(mesh_agent, issuer.entry(Local={"JWKS": "%%%"}))
    mesh = join()
    until(lambda: mesh.status()["events"].get("jwt_provider_unread"), "the note")
    assert decide(mesh, issuer.token()).reason == "jwt_unknown_provider"
    mesh_agent.put_entry(issuer.local())
    until(lambda: decide(mesh, issuer.token()).allowed, "the corrected entry")


def test_remote_keys_are_fetched_ahead_and_roll_over(
    mesh_agent: DevAgent,
    join: Callable[..., Mesh],
    issuer: Issuer,
) -> None:
    """A token by a new key has the keys read again early, long before they are due."""
    remote, hasty = issuer.remote(CacheDuration="1h"), Rhythm(keys_every=0.05)
    mesh = join_demanding(mesh_agent, join, remote, rhythm=hasty)
    assert decide(mesh, issuer.token()).allowed
    asked, old = issuer.asked, issuer.token()
    issuer.roll()
    assert decide(mesh, old).allowed, "no request asks for keys"
    assert issuer.asked == asked
    until(lambda: decide(mesh, issuer.token()).allowed, "the new key")
    assert decide(mesh, old).reason == "jwt_invalid"


def test_remote_keys_are_read_again_when_they_are_old(
    mesh_agent: DevAgent, join: Callable[..., Mesh], issuer: Issuer
) -> None:
    """After CacheDuration, without a token that asks for it."""
    mesh = join_demanding(mesh_agent, join, issuer.remote(CacheDuration="1s"))
    first = mesh.snapshot.conditions.providers[0].keys
    issuer.roll()
    assert mesh.wait_for(lambda s: s.conditions.providers[0].keys not in (None, first), PATIENCE)


def test_bad_tokens_cannot_make_us_hammer_the_issuer(
    mesh_agent: DevAgent, join: Callable[..., Mesh], issuer: Issuer
) -> None:
    """Any caller can send a token by a key that nobody knows: that is one question in a while."""
    mesh = join_demanding(mesh_agent, join, issuer.remote())
    issuer.kid = "unknown"
    issuer.key = ec.generate_private_key(ec.SECP256R1())
    token = issuer.token()
    for _ in range(500):
        assert decide(mesh, token).reason == "jwt_invalid"
    assert issuer.asked == 1


def test_keys_that_cannot_be_read_deny_and_old_ones_stay(
    mesh_agent: DevAgent,
    join: Callable[..., Mesh],
    issuer: Issuer,
) -> None:
    """Before the first answer no token counts; afterwards an address that is away costs nothing."""
    answer, issuer.answer = issuer.answer, lambda: b""
    mesh_agent.set_protocol("tax", "http")
    demand(mesh_agent, issuer.remote(CacheDuration="1s"))
    mesh = join(rhythm=Rhythm(keys_retry=0.05, keys_retry_most=0.05))
    until(lambda: mesh.status()["events"].get("jwt_keys_unread"), "the note")
    assert decide(mesh, issuer.token()).reason == "jwt_no_keys"
    issuer.answer = answer
    assert mesh.wait_for(lambda s: providers(s) == 1, PATIENCE)
    for nonsense in (b"", b"nonsense", b'{"keys": []}', b"[" * 100_000):
        issuer.answer = lambda nonsense=nonsense: nonsense  # type: ignore[misc]
        asked = issuer.asked
        until(lambda asked=asked: issuer.asked > asked + 1, "two more questions")
        assert decide(mesh, issuer.token()).allowed


def test_a_new_address_of_keys_forgets_the_old_ones_keys(
    mesh_agent: DevAgent, join: Callable[..., Mesh], issuer: Issuer
) -> None:
    """Keys of an address that the entry names no more vouch for nothing."""
    mesh = join_demanding(mesh_agent, join, issuer.remote())
    mesh_agent.put_entry(issuer.remote(URI="http://127.0.0.1:1/keys"))
    assert mesh.wait_for(lambda s: providers(s) == 0, PATIENCE)
    assert decide(mesh, issuer.token()).reason == "jwt_no_keys"


def test_a_key_file_is_read(
    mesh_agent: DevAgent, join: Callable[..., Mesh], issuer: Issuer, tmp_path: Path
) -> None:
    """``Local.Filename`` names a file of this machine."""
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(issuer.jwks()))
    mesh = join_demanding(mesh_agent, join, issuer.entry(Local={"Filename": str(file)}))
    assert decide(mesh, issuer.token()).allowed


def test_a_start_without_the_agent_judges_tokens_by_what_was_kept(
    mesh_agent: DevAgent, join: Callable[..., Mesh], issuer: Issuer, tmp_path: Path
) -> None:
    """Protocol, providers and keys are in the sealed file, too."""
    file = tmp_path / "kept"
    mesh_agent.set_protocol("tax", "http")
    demand(mesh_agent, issuer.remote())
    options = {"keep_file": str(file), "keep_key": KEEP_KEY}
    mesh = join(**options)
    assert mesh.wait_for(lambda s: providers(s) == 1, PATIENCE)
    size = 0
    until(lambda: file.exists() and file.stat().st_size > size, "the file")
    saved = file.stat().st_mtime_ns
    mesh_agent.allow("other", "tax")
    until(lambda: file.stat().st_mtime_ns > saved, "a file with the keys in it")
    mesh.close()
    mesh_agent.close()
    again = join(**options)
    assert again.status()["protocol"] == "http"
    assert decide(again).reason == "jwt_missing"
    assert decide(again, issuer.token()).allowed
