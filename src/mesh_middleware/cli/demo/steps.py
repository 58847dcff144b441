"""
The steps of the demo; the last two are in `ways`.

Each is a function of the stage that returns what it has shown, or raises: an error of this package
means that it did not hold, `LeftOutError` and `NotOfferedError` that it was not tried. The order
counts: each step starts from what the one before left.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography import x509

from ...exceptions import AgentUnavailableError
from ..api import AgentApi
from ..rules import NotOfferedError
from . import ways
from .agents import Agent
from .authority import Authority, new_authority
from .evidence import Call, Evidence
from .processes import Process
from .services import CHECK_TTL
from .shop import Traffic
from .stage import (
    LeftOutError,
    Shown,
    Stage,
    StepFailedError,
    expect_answer,
    expect_none_failed,
    is_refusal_of_tax,
    serial,
)
from .strangers import call_as_stranger
from .waiting import until

_POLICY_TIMEOUT = 10.0
"""Seconds until a change of policy has to be felt; it is a matter of milliseconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """
    A step as it is announced.

    Args:
        number: from 1.
        title: what it is about.
        why: what a newcomer should know while watching.
        run: does it.
    """

    number: int
    title: str
    why: str
    run: Callable[[Stage], Shown]


def join(stage: Stage) -> Shown:
    """Step 1: three processes start and register themselves."""
    for service in stage.services:
        service.process.start()
        stage.evidence.process(service.name, service.process.pid, service.port, service.command)
        stage.screen.line(f"$ {service.command}   (pid {service.process.pid})")
    with stage.screen.waiting("waiting until all three are registered and healthy"):
        stage.wait_healthy(30.0)
    if not stage.shop.mesh.ready(10.0):
        raise StepFailedError("the shop got no certificate")
    for name, certificate in stage.certificates().items():
        stage.screen.line(
            f"{name:<8} {stage.identity(name)}  certificate {serial(certificate)[:23]}"
        )
    return Shown("three services registered as connect.native, each with its own certificate")


def answer(stage: Stage) -> Shown:
    """Step 2: the call goes all the way, and each service knows its caller."""
    call = expect_answer(stage.shop.order())
    seen = {
        "order": call.says["caller"],
        "invoice": call.says["invoice"]["caller"],
        "tax": call.says["invoice"]["tax"]["caller"],
    }
    for (service, caller), name in zip(seen.items(), ("shop", "order", "invoice"), strict=True):
        stage.screen.line(f"{service:<8} was called by {caller}")
        if caller != str(stage.identity(name)):
            raise StepFailedError(f"{service} took its caller for {caller}")
    return Shown(
        f"answered in {call.ms:.0f} ms; each service saw its caller's SPIFFE ID", {"seen": seen}
    )


def cut_off(stage: Stage) -> Shown:
    """Step 3: an intention denies, and the next call fails."""
    started = time.perf_counter()
    stage.rules.write("invoice", "tax", {"Action": "deny"})
    written = time.perf_counter()
    passed, call = _call_until(stage, is_refusal_of_tax)
    ms = (time.perf_counter() - started) * 1000
    stage.screen.line(f"order says: {call.says['detail']}")
    figures = {
        "ms_to_first_refusal": round(ms, 1),
        "ms_of_the_write": round((written - started) * 1000, 1),
        "calls_that_still_passed": passed,
    }
    return Shown(
        f"refused {ms:.0f} ms after the change was sent ({_still(passed)})",
        figures,
    )


def resume(stage: Stage) -> Shown:
    """Step 4: the intention is deleted, and calls go through again."""
    started = time.perf_counter()
    stage.rules.delete("invoice", "tax")
    refused, _ = _call_until(stage, lambda call: call.answered)
    ms = (time.perf_counter() - started) * 1000
    return Shown(
        f"answered again {ms:.0f} ms after the deletion was sent",
        {"ms_to_first_answer": round(ms, 1), "calls_still_refused": refused},
    )


def permit_by_method(stage: Stage) -> Shown:
    """Step 5: one intention tells GET from POST."""
    if not stage.rules.by_name():
        raise NotOfferedError("L7 intentions came with Consul 1.9")
    stage.screen.line(_line(expect_answer(stage.shop.order("POST")), "before"))
    stage.rules.write_entry({"Kind": "service-defaults", "Name": "tax", "Protocol": "http"})
    stage.rules.write("invoice", "tax", {"Permissions": _READ_ONLY})
    _call_until(stage, is_refusal_of_tax, "POST")
    get, post = expect_answer(stage.shop.order()), stage.shop.order("POST")
    stage.screen.line(_line(get, "after"))
    stage.screen.line(_line(post, "after"))
    if not is_refusal_of_tax(post):
        raise StepFailedError(f"POST was not refused: {post.status}, {post.says}")
    return Shown("GET /tax answers, POST /tax is refused, on the same connections")


_READ_ONLY = [
    {"Action": "allow", "HTTP": {"PathExact": "/tax", "Methods": ["GET"]}},
    {"Action": "deny", "HTTP": {"PathExact": "/tax", "Methods": ["POST"]}},
]


def rotate(stage: Stage) -> Shown:
    """Step 6: the CA gets a new root while calls run."""
    if stage.agent.process is None:
        raise LeftOutError("CA rotation: this cluster is not the demo's own")
    before = stage.certificates()
    root = new_authority(stage.identity("shop").trust_domain, "mesh demo, rotated root")
    with Traffic(stage.shop) as traffic:
        traffic.wait_for_more(5, 10.0)
        started = time.perf_counter()
        _rotate(stage.agent.api, root)
        with stage.screen.waiting("the CA has a new root; waiting for new certificates"):
            _wait_for_renewal(stage, root, before)
        seconds = time.perf_counter() - started
        traffic.wait_for_more(20, 10.0)
    tally = traffic.stop()
    expect_none_failed(tally)
    return Shown(
        f"every certificate replaced within {seconds:.1f} s; {tally.calls} calls, none failed",
        {
            "calls": tally.calls,
            "failed": 0,
            "slowest_ms": tally.slowest,
            "seconds": round(seconds, 2),
        },
    )


def _wait_for_renewal(
    stage: Stage, root: Authority, before: Mapping[str, x509.Certificate]
) -> None:
    renewed: set[str] = set()

    def ask() -> bool | None:
        for name, certificate in stage.certificates().items():
            if name in renewed or certificate.issuer != root.certificate.subject:
                continue
            certificate.verify_directly_issued_by(root.certificate)
            renewed.add(name)
            stage.screen.line(f"{name:<8} {serial(before[name])} -> {serial(certificate)}")
        return True if len(renewed) == len(before) else None

    until(
        ask,
        timeout=stage.agent.leaf_timeout,
        every=0.2,
        what="every service shows a certificate of the new root",
    )


def outlive_agent(stage: Stage) -> Shown:
    """Step 7: the agent goes away and comes back."""
    process = stage.agent.process
    if process is None:
        raise LeftOutError("stopping the agent: it is not the demo's own")
    with Traffic(stage.shop) as traffic:
        traffic.wait_for_more(5, 10.0)
        stage.agent.stop()
        with stage.screen.waiting("the agent is stopped; calls go on"):
            without = _calls_without_agent(stage, traffic)
        stage.screen.line(f"{without} calls in {_OUTAGE:g} s without an agent")
        said_before = process.log_size()
        started = time.perf_counter()
        stage.agent.start()
        note_agent(stage.agent, stage.evidence)
        with stage.screen.waiting("the agent is back; waiting for the services to find it"):
            _wait_for_registrations(stage, process, said_before)
            stage.wait_healthy(60.0)
        seconds = time.perf_counter() - started
        traffic.wait_for_more(20, 10.0)
    tally = traffic.stop()
    expect_none_failed(tally)
    return Shown(
        f"{without} calls without an agent, none of {tally.calls} failed; all three registered "
        f"again {seconds:.1f} s after its start",
        {
            "calls": tally.calls,
            "calls_without_agent": without,
            "failed": 0,
            "slowest_ms": tally.slowest,
            "seconds_to_registered": round(seconds, 2),
        },
    )


_OUTAGE = 1.5 * CHECK_TTL / 3
"""Seconds without an agent: more than a heartbeat apart, so that every service notices."""


def _calls_without_agent(stage: Stage, traffic: Traffic) -> int:
    before = traffic.tally().calls
    end = time.monotonic() + _OUTAGE
    while time.monotonic() < end:
        if not traffic.wait_for_more(1, 10.0):
            raise StepFailedError("calls stalled without the agent")
    try:
        stage.agent.api.get("/v1/status/leader")
    except AgentUnavailableError:
        return traffic.tally().calls - before
    raise StepFailedError("the agent was stopped, and answers")


def _wait_for_registrations(stage: Stage, process: Process, since: int) -> None:
    # Both agents log such requests, the dev agent as they come, Consul at level DEBUG. Looking at
    # the services alone would not tell: the agent has kept those from before.
    def ask() -> bool | None:
        process.check()
        registrations = _REGISTRATION.findall(process.said_since(since))
        return True if len(registrations) >= len(stage.services) else None

    until(ask, timeout=60.0, every=0.05, what="every service registers again")


# Without word boundaries: lines of an agent that has just started may run into each other.
_REGISTRATION = re.compile(r"PUT (?:url=)?/v1/agent/service/register")


def refuse_strangers(stage: Stage) -> Shown:
    """Step 8: only who is listed gets in."""
    stage.rules.write("invoice", "tax", {"Action": "allow"})
    stage.rules.write("*", "tax", {"Action": "deny"})
    unlisted = until(
        lambda: _refused(stage.shop.call("GET", "https://tax/tax")),
        timeout=_POLICY_TIMEOUT,
        every=0.01,
        what="the shop is refused by tax",
    )
    foreign = new_authority(stage.identity("shop").trust_domain, "a foreign root")
    pair = foreign.issue(stage.identity("invoice").uri)
    port = stage.service("tax").port
    for caller, shown in (("no certificate", None), ("a foreign CA's certificate", pair)):
        call = call_as_stranger(8, caller, port, shown)
        stage.evidence.call(call)
        stage.screen.line(f"{caller:<28} {call.says}")
        if call.status is not None or not str(call.says).startswith("connection ended"):
            raise StepFailedError(f"{caller}: {call.status}, {call.says}")
    stage.screen.line(f"{'shop, not listed':<28} {unlisted.status}: {_title(unlisted)}")
    listed = expect_answer(stage.shop.order())
    stage.screen.line(f"{'invoice, listed':<28} {listed.status}, through order")
    return Shown("two strangers saw the connection end, the unlisted service got a 403")


def _call_until(
    stage: Stage, holds: Callable[[Call], bool], method: str = "GET"
) -> tuple[int, Call]:
    others = 0

    def ask() -> Call | None:
        nonlocal others
        call = stage.shop.order(method)
        if holds(call):
            return call
        if not (call.answered or is_refusal_of_tax(call)):
            raise StepFailedError(f"{method} order: {call.status or 'no status'}, {call.says}")
        others += 1
        return None

    call = until(ask, timeout=_POLICY_TIMEOUT, every=0.0, what="the change of policy is felt")
    return others, call


def _still(passed: int) -> str:
    if not passed:
        return "the very next call"
    return "one call still passed" if passed == 1 else f"{passed} calls still passed"


def _line(call: Call, when: str) -> str:
    verdict = "answered" if call.answered else "refused"
    return f"{when}: {call.method} order -> invoice -> tax: {verdict} ({call.status})"


def _refused(call: Call) -> Call | None:
    return call if call.status == 403 else None


def _title(call: Call) -> str:
    return str(call.says.get("title", "") if isinstance(call.says, dict) else call.says)


def _rotate(api: AgentApi, root: Authority) -> None:
    pair = {"PrivateKey": root.key_pem, "RootCert": root.certificate_pem}
    body = {"Provider": "consul", "Config": {"LeafCertTTL": "72h", **pair}}
    api.put("/v1/connect/ca/configuration", body)


def note_agent(agent: Agent, evidence: Evidence) -> None:
    """Note the agent's process as evidence, when it is ours."""
    if agent.process:
        command = " ".join(agent.process.command)
        evidence.process("agent", agent.process.pid, agent.api.port, command)


PLANS = (
    Plan(
        1,
        "Three services join the mesh",
        "Each is its own process, started as its README says. It gets a certificate\n"
        "from the agent, opens a mutual-TLS port and registers itself. Three lines\n"
        "of its code are mesh.",
        join,
    ),
    Plan(
        2,
        "order -> invoice -> tax",
        "The shop calls order over mutual TLS. Each answer tells whom the service\nsaw calling.",
        answer,
    ),
    Plan(
        3,
        "An intention cuts invoice off from tax",
        "Everybody may call everybody by default. Now: deny invoice -> tax.",
        cut_off,
    ),
    Plan(
        4,
        "The intention is deleted",
        "Nothing is restarted, no connection is closed.",
        resume,
    ),
    Plan(
        5,
        "Allow reading, deny writing",
        "Tax speaks HTTP, so an intention may look at requests: GET /tax is allowed,\n"
        "POST /tax is denied.",
        permit_by_method,
    ),
    Plan(
        6,
        "The CA is replaced while calls run",
        "A new root signs new certificates for everybody, and nobody may notice.\n"
        "(Consul spreads the renewal over 30 s.)",
        rotate,
    ),
    Plan(
        7,
        "The agent is stopped, and started again",
        "Requests are judged from memory, so calls go on. When the agent is back, the\n"
        "services find it.",
        outlive_agent,
    ),
    Plan(
        8,
        "Strangers are refused",
        "Deny * -> tax, allow invoice -> tax. Then three who are not invoice try.",
        refuse_strangers,
    ),
    Plan(
        9,
        "A canary gets a fifth of the calls",
        "A second version of tax starts. A service-splitter gives it 20 %, then all.\n"
        "The caller's code does not know.",
        ways.split,
    ),
    Plan(
        10,
        "Tax ends, and another service stands in",
        "A service-resolver names tax-backup for failover. Its identity is checked like\n"
        "any other's. Then tax starts again.",
        ways.fail_over,
    ),
)
