"""R8: the ways to the agent, and what stands in them: TLS, sockets, tokens, proxies that cut."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mesh_middleware import Mesh
from mesh_middleware.dev import DevAgent, service_token
from mesh_middleware.rhythm import Rhythm

from ..support.certs import Ca, plain_context
from ..support.servers import HELD, PATIENCE, until
from ..support.wire import Wire
from .test_r03_agent_away import RECOVERY, act

Join = Callable[..., Mesh]


def passing(agent: DevAgent) -> bool:
    """Whether the instance is registered, and its check passes."""
    check = agent.state.services.checks.get("mesh:tax-4711")
    return check is not None and check.status == "passing"


def lives_through(agent: DevAgent, wire: Wire, mesh: Mesh) -> None:
    """Joined and registered over *wire*; after it broke and swallowed, again within seconds."""
    assert mesh.ready(PATIENCE), mesh.status()
    until(lambda: passing(agent), "the registration")
    for mode in ("reset", "swallow"):
        wire.set(mode)
        until(lambda: wire.attempts, "an attempt in vain")
        assert mesh.ready()
        wire.set("pass")
        wire.attempts.clear()
        assert act(agent, mesh, mode == "reset") < RECOVERY + 1.0
        agent.deregister("tax-4711")
        until(lambda: passing(agent), "the registration again")


def test_r08_agent_over_tls_with_a_client_certificate(
    agent: DevAgent, join: Join, tmp_path: Path
) -> None:
    """Both ends verified, by files that the settings name; broken and dead connections mend."""
    ca = Ca()
    tls = plain_context("server", [ca], ca.leaf("agent", dns=["agent.test"]))
    assert tls.verify_mode is ssl.CERT_REQUIRED
    made = ca.leaf("client")
    for name, text in (("ca", ca.pem), ("cert", made.chain_pem), ("key", made.key_pem)):
        (tmp_path / name).write_text(text)
    with Wire(agent.url, tls=tls) as wire:
        mesh = join(
            wire.url,
            port=4711,
            service_id="tax-4711",
            check_ttl="1s",
            ca_file=str(tmp_path / "ca"),
            client_cert=str(tmp_path / "cert"),
            client_key=str(tmp_path / "key"),
            tls_server_name="agent.test",
        )
        lives_through(agent, wire, mesh)
        mesh.close()


def test_r08_agent_over_a_unix_socket(agent: DevAgent, join: Join, tmp_path: Path) -> None:
    """``unix://`` like any other: joined, registered, and mended when it breaks."""
    with Wire(agent.url, path=tmp_path / "agent.sock") as wire:
        mesh = join(wire.url, port=4711, service_id="tax-4711", check_ttl="1s")
        lives_through(agent, wire, mesh)
        mesh.close()


def test_r08_token_file_is_read_again(join: Join, tmp_path: Path) -> None:
    """
    The token of the file is revoked and another one written: everything goes on with that one.

    Until then the last good holds; registration and its check survive the change.
    """
    rights = replace(service_token("tax"), agent="read")
    file = tmp_path / "token"
    file.write_text("first\n")
    tokens = {"first": rights}
    with DevAgent(acl=tokens) as agent:
        mesh = join(
            agent.url, port=4711, service_id="tax-4711", check_ttl="1s", token_file=str(file)
        )
        assert mesh.ready(PATIENCE), mesh.status()
        until(lambda: passing(agent), "the registration")
        with agent.faults.begin("forbid"):
            until(lambda: "leaf" in mesh.status()["troubles"], "the refusal")
            assert mesh.ready(), "fail static"
            file.write_text("second\n")
        tokens["second"] = tokens.pop("first")
        agent.renew("tax")
        newest = agent.state.leaves["tax"].leaf.chain_pem
        assert mesh.wait_for(lambda s: s.leaf is not None and s.leaf.chain_pem == newest, 20.0)
        agent.deregister("tax-4711")
        until(lambda: passing(agent), "the registration, by the second token", 20.0)
        until(lambda: not mesh.status()["troubles"], "the end of trouble", 20.0)
        mesh.close()


def test_r08_proxy_that_cuts_long_questions(agent: DevAgent, join: Join) -> None:
    """A limit of a second or more: shorter questions are asked, and policy acts as before."""
    agent.faults.begin("cut", seconds=1.3)
    mesh = join(rhythm=Rhythm(first_backoff=0.1))
    assert mesh.ready(PATIENCE)
    until(lambda: "wait_shortened" in mesh.status()["events"], "shorter questions")
    assert act(agent, mesh, True) < RECOVERY
    until(lambda: not mesh.status()["troubles"], "questions that are answered in time")


def test_r08_questions_that_cannot_be_held_are_asked_every_second(
    agent: DevAgent, join: Join
) -> None:
    """Where anything held is cut at once the agent is polled, without being told to."""
    agent.faults.begin("cut", seconds=0.2)
    mesh = join(rhythm=Rhythm(first_backoff=0.1))
    assert mesh.ready(PATIENCE)
    until(lambda: mesh.status()["events"].get("agent_polled", 0) >= 3, "polling")
    assert act(agent, mesh, True) < RECOVERY
    assert act(agent, mesh, False) < RECOVERY


def test_r08_answer_that_drips_is_given_up(agent: DevAgent, join: Join) -> None:
    """A byte now and then, for ever: told as a stall, nothing is believed, and it mends."""
    mesh = join(rhythm=Rhythm(answer_timeout=0.5))
    assert mesh.ready(PATIENCE)
    # Roots and leaf among them: who asks while it drips is held as ever, for minutes.
    until(lambda: agent.watching == HELD, "all questions held")
    before = mesh.snapshot
    with agent.faults.begin("slow", seconds=0.2):
        until(lambda: mesh.status()["troubles"].keys() >= {"roots", "leaf"}, "trouble")
        assert mesh.status()["troubles"]["leaf"].startswith("agent_stalled: ")
        assert mesh.ready() and mesh.snapshot is before
    assert act(agent, mesh, True) < RECOVERY
