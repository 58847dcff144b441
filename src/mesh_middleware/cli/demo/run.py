"""
One run of the demo, from an empty directory to an empty directory.

Owns the order of things: agent, services, shop, steps, and taking all of it away again whatever
happens, Ctrl-C included.
"""

from __future__ import annotations

import json
import logging
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import httpx
from rich.console import Console

from ...exceptions import AgentError, ConfigError, MeshError
from ..rules import NotOfferedError, Rules
from . import agents, steps, ways
from .evidence import Evidence, Outcome, Step
from .screen import Screen
from .services import NAMES, Service, make_services
from .shop import Shop
from .stage import LeftOutError, Stage, StepFailedError

_OURS = (("invoice", "tax"), ("*", "tax"), ("shop", "tax"))
"""The intentions that the steps write."""

ENDS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end the demo as Ctrl-C does."""

_LAST_WORDS = 0.5
"""Seconds until what a process has to say about a failure is in its log."""


def demo(*, consul: Path | None, use_existing: bool, json_file: Path | None) -> int:
    """
    Run the demo.

    Args:
        consul: binary of a real Consul; ``None`` takes the dev agent.
        use_existing: take the agent that the environment names.
        json_file: takes the evidence; ``-`` is standard output, and the story goes to stderr.

    Returns:
        0 when everything held, 1 when something did not, 130 when it was interrupted.

    Raises:
        ConfigError: the demo cannot run like that.
    """
    to_stdout = json_file is not None and str(json_file) == "-"
    console = Console(stderr=to_stdout, highlight=False, emoji=False)
    evidence, started = Evidence(), time.monotonic()
    screen = Screen(console)
    try:
        with _ends_interrupt(), _quiet(), _closing_undisturbed() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-demo-")))
            agent = _agent(consul, use_existing, directory)
            stack.callback(agent.api.close)
            _play(agent, directory, evidence, screen, use_existing)
    except KeyboardInterrupt:
        console.print("\ninterrupted: everything the demo started has been stopped")
        return 130
    finally:
        if json_file is not None:
            _write(evidence, json_file, to_stdout)
    screen.closing(evidence, time.monotonic() - started)
    return 0 if evidence.held else 1


def _agent(consul: Path | None, use_existing: bool, directory: Path) -> agents.Agent:
    if use_existing:
        return agents.existing()
    if consul is not None:
        return agents.private_consul(consul, directory)
    return agents.dev_agent(directory)


def _play(
    agent: agents.Agent, directory: Path, evidence: Evidence, screen: Screen, guest: bool
) -> None:
    evidence.facts["agent"] = {"title": agent.title, "address": agent.api.address}
    evidence.facts["python"] = platform.python_version()
    services = make_services(agent.environment, directory)
    screen.opening(agent.title, agent.api.address)
    with _closing_undisturbed() as stack:
        stack.callback(agent.stop)
        try:
            agent.start()
        except MeshError:
            _show_agent_log(agent, screen)
            raise
        steps.note_agent(agent, evidence)
        rules = Rules(agent.api)
        extras: list[Service] = []
        if guest:
            _check_guest(agent, rules)
            stack.callback(_tidy, agent, rules, services, extras)
        stack.callback(_stop, services)
        shop = stack.enter_context(Shop(agent.environment, evidence))
        stage = Stage(agent, services, shop, rules, evidence, screen, extras)
        stack.callback(_stop, extras)
        _run_steps(stage)


def _run_steps(stage: Stage) -> None:
    broken = False
    for plan in steps.PLANS:
        if broken:
            never = Step(plan.number, plan.title, Outcome.NOT_REACHED, "", datetime.now(UTC), 0.0)
            stage.evidence.steps.append(never)
            continue
        stage.shop.step = plan.number
        stage.screen.step(plan.number, plan.title, plan.why)
        step = _run_step(plan, stage)
        stage.evidence.steps.append(step)
        stage.screen.ended(step)
        if step.outcome.counts_as_failed:
            broken = True
            _show_logs(stage)
    stage.evidence.complete = True


def _run_step(plan: steps.Plan, stage: Stage) -> Step:
    at, started = datetime.now(UTC), time.monotonic()
    try:
        shown = plan.run(stage)
        outcome, says, figures = Outcome.HELD, shown.says, shown.figures
    except NotOfferedError as error:
        outcome, says, figures = Outcome.NOT_OFFERED, str(error), {}
    except LeftOutError as error:
        outcome, says, figures = Outcome.LEFT_OUT, str(error), {}
    except StepFailedError as error:
        outcome, says, figures = Outcome.FAILED, str(error), {}
    except (MeshError, OSError, httpx.HTTPError) as error:
        outcome, says, figures = Outcome.FAILED, f"{type(error).__name__}: {error}", {}
    seconds = time.monotonic() - started
    return Step(plan.number, plan.title, outcome, says, at, round(seconds, 3), figures)


def _check_guest(agent: agents.Agent, rules: Rules) -> None:
    known = agent.api.get("/v1/catalog/services") or {}
    named = [
        f"{item.get('SourceName')} -> {item.get('DestinationName')}"
        for item in rules.all()
        if item.get("DestinationName") in (*NAMES, "*") or item.get("SourceName") in NAMES
    ]
    taken = [name for name in (*NAMES, ways.BACKUP) if name in known]
    if taken or named:
        what = ", ".join([*taken, *named])
        raise ConfigError(
            f"the agent at {agent.api.address} already has {what}: the demo would disturb it"
        )
    if not rules.check("shop", "order"):
        raise ConfigError("that agent denies by default; the demo is told for a default allow")


def _tidy(
    agent: agents.Agent, rules: Rules, services: Iterable[Service], extras: Iterable[Service]
) -> None:
    # Only on a cluster that is not ours, and only what the steps may have written there. Services
    # deregister themselves, but for one that had to be killed.
    with suppress(AgentError):
        for source, destination in _OURS:
            rules.delete(source, destination)
        ways.tidy(rules)
        left = agent.api.get("/v1/agent/services") or {}
        for service in (*services, *extras):
            if service.id in left:
                agent.api.put(f"/v1/agent/service/deregister/{service.id}")


def _show_logs(stage: Stage) -> None:
    # A server writes its traceback after the 500 that we have just seen.
    threading.Event().wait(_LAST_WORDS)
    for service in (*stage.services, *stage.extras):
        _show_log(service, stage.screen)
    _show_agent_log(stage.agent, stage.screen)


def _show_log(service: Service, screen: Screen) -> None:
    if text := service.process.tail():
        screen.log(service.name, text)


def _show_agent_log(agent: agents.Agent, screen: Screen) -> None:
    if agent.process and (text := agent.process.tail()):
        screen.log(agent.process.name, text)


def _write(evidence: Evidence, file: Path, to_stdout: bool) -> None:
    text = json.dumps(evidence.as_json(), indent=2) + "\n"
    if to_stdout:
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the evidence cannot be written: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    # The shop's own mesh lives in this process; what it has to say is not part of the story.
    logger, handler = logging.getLogger("mesh_middleware"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _ends_interrupt() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # A terminal that is closed sends the second; who says nohup has it ignored already.
    ends = [n for n in ENDS if signal.getsignal(n) is not signal.SIG_IGN]
    before = [signal.signal(number, interrupt) for number in ends]
    try:
        yield
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _closing_undisturbed() -> Iterator[ExitStack]:
    """A stack whose closing no second Ctrl-C interrupts: half of it would be left behind."""
    stack = ExitStack()
    try:
        yield stack
    finally:
        signals = (signal.SIGINT, *ENDS)
        before = [signal.signal(number, signal.SIG_IGN) for number in signals]
        try:
            stack.close()
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)


def _stop(services: Iterable[Service]) -> None:
    # All are asked before the first is waited for: they drain side by side.
    for service in services:
        service.process.ask_to_stop()
    for service in services:
        service.process.stop()
