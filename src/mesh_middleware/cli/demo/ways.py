"""
The last two steps of the demo: a canary split, and a failover.

Owns the config entries they write and the two processes they add, a second version of tax and a
service that stands in for it. The calls are the shop's, straight to tax; nothing in it knows which
instance it will be.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from ...exceptions import AgentError
from ...httpx import MeshInfo
from ...routing import Chain
from ..rules import Rules
from .services import Service, is_healthy, make_tax
from .stage import Shown, Stage, StepFailedError, expect_answer
from .waiting import until

BACKUP = "tax-backup"
_URL = "https://tax/tax"
_CALLS = 100
_CANARY = 20
"""Percent."""
_LEAST, _MOST = 5, 40
"""Calls of `_CALLS` that a fifth may be: farther off by chance once in ten thousand demos."""
_BACK_WITHIN = 45.0
"""Seconds: an instance that was killed, and is the same one to Consul, stays ejected for 30."""
_SUBSETS = {
    "v1": {"Filter": "Service.Meta.version is empty"},
    "v2": {"Filter": 'Service.Meta.version == "2"'},
}


def split(stage: Stage) -> Shown:
    """Step 9: a fifth of the calls goes to version 2, then all of them."""
    _start(
        stage, make_tax(stage.service("tax"), "tax", "2"), make_tax(stage.service("tax"), BACKUP)
    )
    stage.rules.write("shop", "tax", {"Action": "allow"})
    _until(stage, lambda info: True, "the shop may call tax")
    for name in ("tax", BACKUP):
        stage.rules.write_entry({"Kind": "service-defaults", "Name": name, "Protocol": "http"})
    stage.rules.write_entry({"Kind": "service-resolver", "Name": "tax", "Subsets": _SUBSETS})
    _share(stage, _CANARY)
    _wait_for_share(stage, _CANARY)
    found = Counter(_version(_call(stage)) for _ in range(_CALLS))
    stage.screen.line(f"{_CANARY} % for version 2: {found['v1']} and {found['v2']} of {_CALLS}")
    if not _LEAST <= found["v2"] <= _MOST or found["v1"] + found["v2"] != _CALLS:
        raise StepFailedError(f"a fifth was asked for: {dict(found)}")
    started = time.perf_counter()
    _share(stage, 100)
    _wait_for_share(stage, 100)
    ms = (time.perf_counter() - started) * 1000
    rest = Counter(_version(_call(stage)) for _ in range(_CALLS))
    if rest != {"v2": _CALLS}:
        raise StepFailedError(f"all was asked for: {dict(rest)}")
    return Shown(
        f"{found['v2']} of {_CALLS} calls were version 2's; {ms:.0f} ms after the next write, all",
        {"calls": _CALLS, "v2_of_a_fifth": found["v2"], "ms_to_all": round(ms, 1)},
    )


def fail_over(stage: Stage) -> Shown:
    """Step 10: tax ends, another service stands in, and hands back."""
    stage.rules.delete_entry("service-splitter", "tax")
    entry = {"Kind": "service-resolver", "Name": "tax", "Failover": {"*": {"Service": BACKUP}}}
    stage.rules.write_entry(entry)
    watched = stage.shop.mesh.upstream("tax")
    ready = watched.wait_for(lambda state: len(state.instances) == 3, 10.0)
    if not ready:
        raise StepFailedError("the failover is not known")
    ending = [one for one in (*stage.services, *stage.extras) if one.name == "tax"]
    started, before = time.perf_counter(), stage.shop.calls
    for service in ending:
        service.process.ask_to_stop()
    _until(stage, lambda info: _who(info) == BACKUP, f"{BACKUP} answers", strict=True)
    away = (time.perf_counter() - started) * 1000
    for service in ending:
        service.process.stop()
    stage.screen.line(f"tax ended; {BACKUP} answers, {away:.0f} ms later")
    stage.service("tax").process.start()
    back = "tax answers again"
    _until(stage, lambda info: _who(info) == "tax", back, strict=True, timeout=_BACK_WITHIN)
    stage.screen.line("tax was started again, and answers")
    calls = stage.shop.calls - before
    return Shown(
        f"{calls} calls meanwhile, none failed",
        {"calls": calls, "failed": 0, "ms_to_failover": round(away, 1)},
    )


def tidy(rules: Rules) -> None:
    """Take away what the two steps may have written."""
    for kind in ("service-splitter", "service-resolver"):
        rules.delete_entry(kind, "tax")
    for name in ("tax", BACKUP):
        rules.delete_entry("service-defaults", name)


def _start(stage: Stage, *found: Service) -> None:
    stage.extras.extend(found)
    for service in found:
        service.process.start()
        stage.evidence.process(service.name, service.process.pid, service.port, service.command)
        stage.screen.line(f"$ {service.command}   (pid {service.process.pid})")
    for service in found:
        _wait_healthy(stage, service)


def _wait_healthy(stage: Stage, service: Service) -> None:
    def ask() -> bool | None:
        try:
            return True if is_healthy(stage.agent.api, service) else None
        except AgentError:
            return None

    until(ask, timeout=30.0, every=0.05, what=f"{service.name} registered and passing")


def _share(stage: Stage, percent: int) -> None:
    splits = [
        {"Weight": 100 - percent, "ServiceSubset": "v1"},
        {"Weight": percent, "ServiceSubset": "v2"},
    ]
    entry = {"Kind": "service-splitter", "Name": "tax", "Splits": splits}
    stage.rules.write_entry(entry)


def _wait_for_share(stage: Stage, percent: int) -> None:
    # The shop's own knowledge is asked, not its calls: one that goes to version 2 may be luck.
    watched = stage.shop.mesh.upstream("tax")
    if not watched.wait_for(lambda state: _canary(watched.course.chain) == percent, 10.0):
        raise StepFailedError(f"{percent} % for version 2 were written, and not heard of")


def _canary(chain: Chain) -> float:
    splits = (split for found in chain.splitters.values() for split in found)
    return sum(
        split.weight
        for split in splits
        if chain.targets[chain.resolvers[split.next].target].subset == "v2"
    )


def _call(stage: Stage) -> MeshInfo:
    call, info = stage.shop.call_seen("GET", _URL)
    expect_answer(call)
    assert info is not None, "an answer has an instance"
    return info


def _until(
    stage: Stage,
    holds: Callable[[MeshInfo], bool],
    what: str,
    *,
    strict: bool = False,
    timeout: float = 10.0,
) -> None:
    def ask() -> bool | None:
        call, info = stage.shop.call_seen("GET", _URL)
        if strict:
            expect_answer(call)
        return True if call.answered and info is not None and holds(info) else None

    until(ask, timeout=timeout, every=0.0, what=what)


def _version(info: MeshInfo) -> str:
    return info.split.partition(".")[0]


def _who(info: MeshInfo) -> str:
    return info.instance.expected.name
