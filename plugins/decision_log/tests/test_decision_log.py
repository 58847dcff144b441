"""The plugin writes what was decided, hides what may be secret, and never stands in the way."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import mesh_decision_log
import pytest
from mesh_decision_log import DecisionLog, make_plugin, sink

from mesh_middleware import Mesh, Peer
from mesh_middleware.dev import DevAgent
from mesh_middleware.identity import ServiceId, parse_spiffe_id
from mesh_middleware.intentions import HttpFacts, Intention, Reason, decision
from mesh_middleware.plugins import Plugins
from mesh_middleware.resolve import Endpoint
from mesh_middleware.routing.report import AttemptReport
from mesh_middleware.snapshot import Snapshot

INVOICE = parse_spiffe_id("spiffe://1234.consul/ns/default/dc/dc1/svc/invoice")
RULE = Intention("invoice", "tax", None)
FACTS = HttpFacts(b"POST", b"/tax?token=secret", [(b"authorization", b"secret")])
NOW = datetime(2026, 11, 20, 17, 16, 52, tzinfo=UTC)


class Kept(sink.Sink):
    """Keeps lines in memory."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

        self._changed = threading.Condition()

    def write(self, line: str) -> None:
        with self._changed:
            self.lines.append(json.loads(line))
            self._changed.notify_all()

    def wait_for(self, event: str) -> bool:
        """Wait for a line of *event*."""
        with self._changed:
            return self._changed.wait_for(
                lambda: any(line["event"] == event for line in self.lines), 30
            )


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def plugins(kept: Kept) -> Plugins:
    found = Plugins([DecisionLog(kept, now=lambda: NOW)], installed=False)
    found.startup("tax", "http://127.0.0.1:8500")
    return found


def test_a_decision_is_one_line_with_its_reason(plugins: Plugins, kept: Kept) -> None:
    """Who, what, verdict, and which intention and permission decided."""
    verdict = decision(Reason.PERMISSION_DENY, RULE, 1)
    plugins.decision(verdict, INVOICE, FACTS)
    assert kept.lines[-1] == {
        "time": "2026-11-20T17:16:52+00:00",
        "event": "decision",
        "service": "tax",
        "pid": os.getpid(),
        "source": INVOICE.uri,
        "allowed": False,
        "reason": "permission_deny",
        "status": 403,
        "intention": "default/invoice => default/tax (precedence 9)",
        "permission": 1,
        "method": "POST",
        "path": "/tax",
    }


def test_a_caller_without_identity_is_logged_as_null(plugins: Plugins, kept: Kept) -> None:
    """A request without a peer has a source too: none."""
    plugins.decision(decision(Reason.NO_PEER), None, FACTS)
    assert (kept.lines[-1]["source"], kept.lines[-1]["intention"]) == (None, None)


def test_queries_and_headers_stay_out(plugins: Plugins, kept: Kept) -> None:
    """They may hold secrets, so no event writes them."""
    plugins.decision(decision(Reason.DEFAULT_ALLOW), INVOICE, FACTS)
    assert "secret" not in json.dumps(kept.lines)


def test_a_path_of_odd_bytes_still_makes_a_line(plugins: Plugins, kept: Kept) -> None:
    """Bytes that are no UTF-8 are escaped, never raised about."""
    plugins.decision(decision(Reason.DEFAULT_ALLOW), INVOICE, HttpFacts(b"GET", b"/%ff%0a"))
    assert kept.lines[-1]["path"] == "/\\xff\n"


def test_every_other_hook_writes_its_event(plugins: Plugins, kept: Kept) -> None:
    """Start, registration, look-up and snapshot each leave a line; the look-up has no opinion."""
    plugins.registration("tax-5003", True)
    assert plugins.resolve("tax", None) is None
    plugins.snapshot(Snapshot(), Snapshot(intentions=(RULE,)))
    events = [(line["event"], line["service"]) for line in kept.lines]
    assert events == [
        ("startup", "tax"),
        ("registration", "tax"),
        ("resolve", "tax"),
        ("snapshot", "tax"),
    ]
    assert kept.lines[-1]["intentions"] == 1


def test_without_a_destination_no_hook_is_registered() -> None:
    """Installed but not asked for, it costs a request nothing."""
    assert not Plugins([make_plugin("")], installed=False).watches_decisions


def test_with_a_destination_decisions_are_watched() -> None:
    """The counterpart of the test above."""
    assert Plugins([make_plugin("logger")], installed=False).watches_decisions


def test_the_distribution_declares_its_entry_point() -> None:
    """The mesh finds the plugin through the group ``mesh_middleware``."""
    (found,) = entry_points(group="mesh_middleware", name="decision_log")
    assert found.load() is mesh_decision_log.plugin


def test_a_mesh_tells_its_life_and_its_verdicts(mesh_agent: DevAgent, kept: Kept) -> None:
    """A real mesh on a real agent: start, registration, snapshots, look-up and decision."""
    log = DecisionLog(kept, now=lambda: NOW)
    with Mesh("tax", agent=mesh_agent.url, port=5003, plugins=[log]) as mesh:
        assert mesh.ready(30)
        leaf = mesh.snapshot.leaf
        assert leaf is not None
        mesh.watch_upstream("rates")
        mesh.decide(Peer(leaf.id, "0a", leaf.not_after), FACTS)
        assert kept.wait_for("registration") and kept.wait_for("resolve")
    events = [line["event"] for line in kept.lines]
    assert events[0] == "startup"
    assert {"snapshot", "decision", "registration", "resolve"} <= set(events)
    (verdict,) = [line for line in kept.lines if line["event"] == "decision"]
    assert (verdict["reason"], verdict["source"]) == ("default_allow", leaf.id.uri)
    last = [line for line in kept.lines if line["event"] == "snapshot"][-1]
    assert (last["serial_number"], last["roots"]) == (leaf.serial_number, 1)


def test_a_file_gets_whole_lines_in_order(tmp_path: Path) -> None:
    """Lines are written by another thread, in the order they came."""
    file = tmp_path / "decisions.jsonl"
    writer = sink.FileSink(str(file))
    for number in range(500):
        writer.write(json.dumps({"number": number}))
    assert writer.flush()
    assert [json.loads(line)["number"] for line in file.read_text().splitlines()] == [*range(500)]


def test_a_rotated_file_is_begun_anew(tmp_path: Path) -> None:
    """After the file was moved away, lines go to a new one of the old name."""
    file = tmp_path / "decisions.jsonl"
    writer = sink.FileSink(str(file))
    writer.write('{"number": 1}')
    assert writer.flush()
    file.rename(tmp_path / "decisions.jsonl.1")
    writer.write('{"number": 2}')
    assert writer.flush()
    assert file.read_text() == '{"number": 2}\n'


def test_stderr_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """``MESH_DECISION_LOG=stderr``."""
    writer = sink.StderrSink()
    writer.write("{}")
    assert writer.flush()
    assert capsys.readouterr().err == "{}\n"


def test_the_logger_gets_lines(caplog: pytest.LogCaptureFixture) -> None:
    """``MESH_DECISION_LOG=logger``."""
    with caplog.at_level(logging.INFO, "mesh_decision_log"):
        sink.LoggerSink().write('{"a": "100%"}')
    assert caplog.messages == ['{"a": "100%"}']


def test_a_file_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The service goes on without its log; the operator is told, not flooded."""
    writer = sink.FileSink(str(tmp_path / "missing" / "decisions.jsonl"))
    for _ in range(3):
        writer.write("{}")
        assert writer.flush()
    assert len(caplog.messages) == 1
    assert "decisions are not logged" in caplog.text


class Stuck(sink.ThreadSink):
    """A destination that takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.written = ""

    def _put(self, batch: str) -> None:
        self.entered.set()
        assert self.let_go.wait(10)
        self.written += batch


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    found = Stuck()
    yield found
    found.let_go.set()


def test_a_stuck_destination_drops_lines_and_counts_them(stuck: Stuck) -> None:
    """Memory is bounded, no request waits, and the next line written tells how many are missing."""
    stuck.write('{"number": 0}')
    assert stuck.entered.wait(10)
    for number in range(sink.MAX_WAITING + 7):
        stuck.write(json.dumps({"number": number}))
    stuck.let_go.set()
    assert stuck.flush()
    stuck.write('{"number": "last"}')
    assert stuck.flush()
    lines = [json.loads(line) for line in stuck.written.splitlines()]
    assert len(lines) == 1 + sink.MAX_WAITING + 1
    assert lines[-1] == {"number": "last", "dropped": 7}


FORKING = """
import os, sys
from mesh_decision_log.sink import FileSink
writer = FileSink(sys.argv[1])
writer.write('parent')
assert writer.flush()
if os.fork() == 0:
    writer.write('child')
    os._exit(0 if writer.flush() else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.process
def test_a_forked_child_writes_its_own_lines(tmp_path: Path) -> None:
    """Servers may fork after import: the child has a writer of its own."""
    file = tmp_path / "decisions.jsonl"
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(file)]
    subprocess.run(command, check=True, timeout=30)
    assert file.read_text().splitlines() == ["parent", "child"]


def test_an_attempt_to_call_is_one_line(plugins: Plugins, kept: Kept) -> None:
    """Where a call went and what became of it; neither path nor headers."""
    assert plugins.watches_attempts
    expected = parse_spiffe_id("spiffe://1234.consul/ns/default/dc/dc1/svc/invoice")
    assert isinstance(expected, ServiceId)
    endpoint = Endpoint("10.0.0.5", 8443, expected)
    plugins.attempt(
        AttemptReport("invoice.service", "GET", endpoint, 2, "answer", 200, seconds=0.0125)
    )
    line = kept.lines[-1]
    assert (line["event"], line["upstream"], line["address"]) == (
        "attempt",
        "invoice.service",
        "10.0.0.5:8443",
    )
    assert line["expected"] == expected.uri
    assert (line["number"], line["outcome"], line["status"]) == (2, "answer", 200)
    assert (line["seconds"], line["final"], line["error"]) == (0.0125, True, None)
