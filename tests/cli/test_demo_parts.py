"""What the demo is made of, where the whole does not show it."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from rich.console import Console

from mesh_middleware.certificates import read_leaf
from mesh_middleware.cli.demo import run
from mesh_middleware.cli.demo.agents import existing
from mesh_middleware.cli.demo.authority import new_authority
from mesh_middleware.cli.demo.evidence import Call, Evidence, Outcome, Step
from mesh_middleware.cli.demo.processes import (
    Process,
    ProcessError,
    clean_environment,
    examples_directory,
    free_ports,
)
from mesh_middleware.cli.demo.screen import Screen
from mesh_middleware.cli.demo.services import Service
from mesh_middleware.cli.demo.shop import Tally
from mesh_middleware.cli.demo.stage import (
    LeftOutError,
    Shown,
    StepFailedError,
    expect_answer,
    expect_none_failed,
    is_refusal_of_tax,
)
from mesh_middleware.cli.demo.steps import PLANS, Plan
from mesh_middleware.cli.demo.strangers import call_as_stranger
from mesh_middleware.cli.demo.waiting import TooLateError, until
from mesh_middleware.cli.rules import NotOfferedError, Rules
from mesh_middleware.dev import DevAgent
from mesh_middleware.exceptions import AgentUnavailableError

NOW = datetime(2026, 11, 20, tzinfo=UTC)
TRUST_DOMAIN = "1234.consul"
INVOICE = f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/invoice"


def call(status: int | None, says: object = None) -> Call:
    return Call(NOW, 3, "shop", "GET", "https://order/orders/1", status, 1.5, says)


def step(outcome: Outcome) -> Step:
    return Step(1, "a step", outcome, "", NOW, 0.0)


# Verdicts


@pytest.mark.parametrize(
    ("outcomes", "held"),
    [
        (["HELD"] * 10, True),
        (["HELD", "NOT_OFFERED", "LEFT_OUT"], True),
        (["HELD", "FAILED"], False),
        (["HELD", "NOT_REACHED"], False),
    ],
    ids=["all", "not offered", "failed", "not reached"],
)
def test_the_demo_holds_when_no_step_failed(outcomes: list[str], held: bool) -> None:
    """What a Consul does not offer does not count, what was not reached does."""
    evidence = Evidence()
    evidence.steps += [step(Outcome[name]) for name in outcomes]
    assert evidence.held is False, "the story is not over"
    evidence.complete = True
    assert evidence.held is held


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (StepFailedError("no"), Outcome.FAILED),
        (AgentUnavailableError("away"), Outcome.FAILED),
        (ssl.SSLError("refused"), Outcome.FAILED),
        (NotOfferedError("old"), Outcome.NOT_OFFERED),
        (LeftOutError("not ours"), Outcome.LEFT_OUT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_step_raises_is_its_outcome(error: Exception, outcome: Outcome) -> None:
    """Only the two that say so are not failures."""

    def raise_it(stage: object) -> Shown:
        raise error

    found = run._run_step(Plan(1, "a step", "", raise_it), stage=None)  # type: ignore[arg-type]
    assert (found.outcome, str(error) in found.says) == (outcome, True)


def test_the_steps_are_the_ten_of_the_story() -> None:
    """Numbered in order, each with a title and a reason to watch."""
    assert [plan.number for plan in PLANS] == list(range(1, 11))
    assert all(plan.title and plan.why for plan in PLANS)


def test_an_answer_that_did_not_come_fails_its_step() -> None:
    """The message says what came instead."""
    with pytest.raises(StepFailedError, match="no status, ConnectError"):
        expect_answer(call(None, "ConnectError: refused"))
    assert expect_answer(call(201)).status == 201


def test_one_lost_call_among_many_fails_the_traffic() -> None:
    """And so does traffic that never was."""
    expect_none_failed(Tally(100, (), 9.0))
    with pytest.raises(StepFailedError, match="1 of 100 calls failed, the first with 502: x"):
        expect_none_failed(Tally(100, (call(502, "x"),), 9.0))
    with pytest.raises(StepFailedError, match="no call was made"):
        expect_none_failed(Tally(0, (), 0.0))


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (call(502, {"detail": "invoice: tax: denied by intention or default policy"}), True),
        (call(502, {"detail": "invoice: tax: no healthy instance"}), False),
        (call(502, {"detail": "invoice: denied by intention or default policy"}), False),
        (call(200, {"detail": "invoice: tax: denied by intention"}), False),
        (call(None, "ConnectError"), False),
    ],
    ids=["tax's policy", "another reason", "invoice's policy", "an answer", "no answer"],
)
def test_only_a_refusal_by_taxs_policy_counts_as_one(answer: Call, refused: bool) -> None:
    """A broken chain must not pass for an intention at work."""
    assert is_refusal_of_tax(answer) is refused


# Evidence


def test_evidence_is_json_with_moments_as_text() -> None:
    """Nested values too; a certificate seen twice is one."""
    evidence = Evidence()
    evidence.steps.append(step(Outcome.HELD))
    evidence.call(call(200, {"a": [1]}))
    evidence.process("tax", 7, 5003, "hypercorn")
    for _ in range(2):
        evidence.certificate("tax", "0a", "CN=x")
    found = json.loads(json.dumps(evidence.as_json()))
    assert found["calls"][0]["at"] == "2026-11-20T00:00:00+00:00"
    assert (found["steps"][0]["outcome"], len(found["certificates"])) == ("held", 1)


# Processes


def python(folder: Path, code: str) -> Process:
    command = [sys.executable, "-c", code]
    log = folder / "log"
    return Process("child", command, cwd=folder, environment=clean_environment(), log=log)


@pytest.mark.process
def test_a_process_that_will_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    """The session is killed, so that a server's workers do not outlive it."""
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "print('ready', flush=True)\n"
        "child.wait()\n"
    )
    process = python(tmp_path, code)
    process.start()
    until(lambda: "ready" in process.tail() or None, timeout=30, every=0.02, what="it runs")
    process.stop(timeout=0.2)
    with pytest.raises(ProcessError, match=f"exit code {-signal.SIGKILL}"):
        process.check()
    process.stop()


@pytest.mark.process
def test_a_process_that_ended_is_noticed_with_its_code(tmp_path: Path) -> None:
    """Its last lines are there to be shown."""
    process = python(tmp_path, "print('last words'); raise SystemExit(3)")
    with pytest.raises(ProcessError, match="not started"):
        process.check()
    process.start()

    def ended() -> str | None:
        try:
            process.check()
        except ProcessError as error:
            return str(error)
        return None

    assert "exit code 3" in until(ended, timeout=30, every=0.02, what="it ends")
    assert process.tail() == "last words"
    assert process.said_since(len("last ")) == "words\n"


@pytest.mark.process
def test_a_program_that_is_not_there_is_a_process_error(tmp_path: Path) -> None:
    """With its name, not a traceback."""
    nowhere = Process(
        "ghost", ["/nowhere/ghost"], cwd=tmp_path, environment={}, log=tmp_path / "log"
    )
    with pytest.raises(ProcessError, match="ghost cannot be started"):
        nowhere.start()


def test_children_do_not_see_the_shells_consul(monkeypatch: pytest.MonkeyPatch) -> None:
    """Address and token of a cluster that was not asked for stay out."""
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "secret")
    monkeypatch.setenv("MESH_MODE", "shadow")
    found = clean_environment(MESH_AGENT="http://127.0.0.1:1")
    assert not [name for name in found if name.startswith("CONSUL_")]
    assert [name for name in found if name.startswith("MESH_")] == ["MESH_AGENT"]


def test_ports_are_all_different() -> None:
    """They are held while the next is looked for."""
    assert len(set(free_ports(20))) == 20


def test_the_examples_are_found_in_a_checkout() -> None:
    """Each with its ``mesh`` file."""
    found = sorted(path.parent.name for path in examples_directory().glob("*/mesh"))
    assert found == ["fastapi_order", "flask_invoice", "flask_tax"]


def test_waiting_has_an_end() -> None:
    """The error says what was waited for."""
    with pytest.raises(TooLateError, match=r"rain: not within 0\.01 s"):
        until(lambda: None, timeout=0.01, every=0.001, what="rain")


# Strangers


def test_a_made_up_authority_is_shaped_like_consuls() -> None:
    """Its leaves pass every check of ours but the one that counts: who signed them."""
    authority = new_authority(TRUST_DOMAIN, "a foreign root")
    pair = authority.issue(INVOICE)
    assert read_leaf(pair.partition("-----BEGIN EC")[0]).id.uri == INVOICE
    leaf = x509.load_pem_x509_certificate(pair.encode())
    leaf.verify_directly_issued_by(authority.certificate)
    assert "PRIVATE" not in repr(authority)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def serve_once(listening: socket.socket, answer: bytes | None) -> threading.Thread:
    """Take one TLS connection and answer it; ``None`` closes it in place of a handshake."""
    authority = new_authority(TRUST_DOMAIN, "a root")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = Path(f"/proc/self/fd/{_memory_file(authority.issue(INVOICE))}")
    context.load_cert_chain(pem)

    def serve() -> None:
        plain, _ = listening.accept()
        with plain:
            if answer is None:
                return
            with context.wrap_socket(plain, server_side=True) as tls:
                tls.recv(65536)
                tls.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def _memory_file(text: str) -> int:
    descriptor = os.memfd_create("leaf")
    os.write(descriptor, text.encode())
    return descriptor


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nhello", 200),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n{}", 403),
        (b"", None),
        (None, None),
    ],
    ids=["let in", "403", "ended after the handshake", "ended before it"],
)
def test_a_stranger_tells_an_answer_from_an_end(
    server: socket.socket, answer: bytes | None, status: int | None
) -> None:
    """A server that let a stranger in would be seen."""
    thread = serve_once(server, answer)
    found = call_as_stranger(8, "nobody", server.getsockname()[1], None)
    thread.join(10)
    assert found.status == status
    assert str(found.says).startswith("connection ended") is (status is None)


def test_who_was_killed_is_deregistered_from_a_cluster_of_others(
    mesh_agent: DevAgent, tmp_path: Path
) -> None:
    """Services take themselves away; one that had to be killed cannot, and the demo does it. What
    else is registered stays."""
    agent = existing(mesh_agent.url)
    process = Process("order", ["true"], cwd=tmp_path, environment={}, log=tmp_path / "log")
    services = [Service("order", 5001, process), Service("tax", 5003, process)]
    for port in (5001, 5002):
        body = {"Name": "order", "ID": f"order-127.0.0.1-{port}", "Port": port}
        agent.api.put("/v1/agent/service/register", body)
    run._tidy(agent, Rules(agent.api), services, [])
    assert list(agent.api.get("/v1/agent/services")) == ["order-127.0.0.1-5002"]
    agent.api.close()


def test_the_story_fits_a_narrow_terminal() -> None:
    """Sentences are broken where the terminal ends, and indented like what is around them."""
    told = io.StringIO()
    screen = Screen(Console(file=told, width=40))
    screen.opening("the dev agent", "http://127.0.0.1:8500")
    for plan in PLANS:
        screen.step(plan.number, plan.title, plan.why)
    lines = told.getvalue().splitlines()
    assert max(map(len, lines)) <= 54  # an address is not broken
    why = " ".join(line.strip() for line in lines if line.startswith("  "))
    assert all(" ".join(plan.why.split()) in why for plan in PLANS)
    # No line is short for a break that was there before, within a sentence.
    first = told.getvalue().partition("by themselves:")[2].partition("the agent")[0].split("\n")
    assert all(len(line) > 25 for line in first[1:-2])
