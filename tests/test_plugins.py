"""Plugins: told of everything, trusted with little, and never the end of the host."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import pluggy
import pytest

from mesh_middleware import hookspecs
from mesh_middleware.identity import ServiceId, SpiffeId
from mesh_middleware.intentions import Decision, HttpFacts, Reason, RequestFacts, decision
from mesh_middleware.plugins import Plugins, hookimpl
from mesh_middleware.snapshot import Snapshot

from .support.certs import TRUST_DOMAIN

ORDER = ServiceId(TRUST_DOMAIN, "default", "dc1", "order")
GET = HttpFacts(b"GET", b"/")
YES, NO = decision(Reason.DEFAULT_ALLOW), decision(Reason.DEFAULT_DENY)


class Witness:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    @hookimpl
    def mesh_startup(self, service: str, agent: str) -> None:
        self.told.append(("startup", service, agent))

    @hookimpl
    def mesh_registration(self, service_id: str, registered: bool) -> None:
        self.told.append(("registration", service_id, registered))

    @hookimpl
    def mesh_snapshot(self, old: Snapshot, new: Snapshot) -> None:
        self.told.append(("snapshot", old.version, new.version))

    @hookimpl
    def mesh_decision(
        self, decision: Decision, source: SpiffeId | None, facts: RequestFacts
    ) -> None:
        self.told.append(("decision", decision.reason, source, facts.method))


class Faulty:
    """Raises whatever it is asked."""

    @hookimpl
    def mesh_startup(self, service: str) -> None:
        raise RuntimeError("startup is beyond me")

    @hookimpl
    def mesh_registration(self) -> None:
        raise RuntimeError("registration is beyond me")

    @hookimpl
    def mesh_snapshot(self, new: Snapshot) -> None:
        raise RuntimeError("snapshots are beyond me")

    @hookimpl
    def mesh_decision(self, decision: Decision) -> None:
        raise RuntimeError("decisions are beyond me")


class Says:
    """Has one opinion on everything."""

    def __init__(self, opinion: Any) -> None:
        self._opinion = opinion

    @hookimpl
    def mesh_restrict(self, source: SpiffeId, facts: RequestFacts) -> Any:
        if isinstance(self._opinion, Exception):
            raise self._opinion
        return self._opinion


class Resolves:
    """Answers for one upstream."""

    def __init__(self, name: str, found: Sequence[Any] | None) -> None:
        self._name, self._found = name, found

    @hookimpl
    def mesh_resolve(self, upstream: str, datacenter: str | None) -> Sequence[Any] | None:
        return self._found if upstream == self._name else None


def made(*plugins: object) -> Plugins:
    """Only these plugins, none that happens to be installed."""
    return Plugins(plugins, installed=False)


def tell_all(plugins: Plugins) -> None:
    """Everything there is to tell."""
    plugins.startup("tax", "http://127.0.0.1:8500")
    plugins.registration("tax-5003", True)
    plugins.snapshot(Snapshot(), Snapshot(version=1))
    plugins.decision(NO, ORDER, GET)


TOLD = [
    ("startup", "tax", "http://127.0.0.1:8500"),
    ("registration", "tax-5003", True),
    ("snapshot", 0, 1),
    ("decision", Reason.DEFAULT_DENY, ORDER, b"GET"),
]


def test_every_plugin_is_told_everything() -> None:
    """In the order they were registered, each with the values it asks for."""
    first, second = Witness(), Witness()
    tell_all(made(first, second))
    assert first.told == second.told == TOLD


@pytest.mark.parametrize("order", ["faulty first", "faulty last"])
def test_plugin_that_raises_keeps_nobody_from_being_told(
    order: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, with its name and the hook, and forgotten."""
    witness, faulty = Witness(), Faulty()
    plugins = made(faulty, witness) if order == "faulty first" else made(witness, faulty)
    with caplog.at_level(logging.ERROR, "mesh_middleware.plugins"):
        tell_all(plugins)
    assert witness.told == TOLD
    assert [record.message.split(" in ")[1] for record in caplog.records] == [
        "mesh_startup",
        "mesh_registration",
        "mesh_snapshot",
        "mesh_decision",
    ]
    assert "beyond me" in caplog.text


def test_host_without_plugins_asks_none() -> None:
    """A request pays nothing for hooks that nobody implements."""
    plugins = made()
    assert not plugins.watches_decisions
    assert not plugins.restricts
    assert made(Witness()).watches_decisions
    assert not made(Witness()).restricts
    assert made(Says(None)).restricts
    assert not made(Says(None)).watches_decisions


@pytest.mark.parametrize(
    ("opinions", "permitted"),
    [
        ([None], True),
        ([True], True),
        ([False], False),
        ([None, False], False),
        ([False, True], False),
        ([True, False, None], False),
    ],
)
def test_one_false_denies(opinions: list[Any], permitted: bool) -> None:
    """``False`` is the only no; no other plugin can take it back."""
    assert made(*map(Says, opinions)).permits(ORDER, GET) is permitted


@pytest.mark.parametrize("others", [[], [True], [False]])
def test_restriction_that_raises_is_raised_to_who_denies(others: list[Any]) -> None:
    """The mesh turns it into a denial: no answer of another plugin covers it up."""
    plugins = made(*map(Says, others), Says(RuntimeError("beyond me")))
    with pytest.raises(RuntimeError, match="beyond me"):
        plugins.permits(ORDER, GET)


def test_first_opinion_on_an_upstream_wins() -> None:
    """``None`` is no opinion, an empty sequence is one."""
    plugins = made(Resolves("tax", ["late"]), Resolves("order", []), Resolves("tax", ["early"]))
    assert plugins.resolve("tax", None) == ["early"]
    assert plugins.resolve("order", None) == []
    assert plugins.resolve("web", "dc2") is None


def test_resolver_that_raises_is_raised() -> None:
    """The upstream is then not looked up elsewhere: the plugin may stand for a reason."""

    class Broken:
        @hookimpl
        def mesh_resolve(self, upstream: str) -> None:
            raise RuntimeError("beyond me")

    with pytest.raises(RuntimeError):
        made(Broken()).resolve("tax", None)


def test_hook_that_does_not_exist_is_refused_at_once() -> None:
    """A misspelt hook would never be called, and nobody would notice."""

    class Misspelt:
        @hookimpl
        def mesh_restricts(self) -> bool:
            return False

    with pytest.raises(pluggy.PluginValidationError, match="mesh_restricts"):
        made(Misspelt())


def test_argument_that_does_not_exist_is_refused_at_once() -> None:
    """A hook asking for what it cannot get is a mistake of its author's, found at the start."""

    class Greedy:
        @hookimpl
        def mesh_decision(self, decision: Decision, private_key: str) -> None:
            raise AssertionError

    with pytest.raises(pluggy.PluginValidationError, match="private_key"):
        made(Greedy())


def test_async_hook_is_refused_at_once() -> None:
    """A coroutine is not ``False``: an async restriction would let everyone in."""

    class Eager:
        @hookimpl
        async def mesh_restrict(self, source: SpiffeId, facts: RequestFacts) -> bool:
            return False

    with pytest.raises(pluggy.PluginValidationError, match="mesh_restrict is async"):
        made(Witness(), Eager())


def test_names_of_plugins_are_told() -> None:
    """Status shows who has a say."""
    assert len(made(Witness(), Says(None)).names()) == 2
    assert made().names() == []


def test_two_meshes_have_plugins_of_their_own() -> None:
    """What one mesh was given, the other does not see."""
    witness = Witness()
    made(witness)
    made().startup("tax", "x")
    assert witness.told == []


def _hooks() -> dict[str, Any]:
    return {
        name: function
        for name, function in vars(hookspecs).items()
        if name.startswith("mesh_") and inspect.isfunction(function)
    }


@pytest.mark.parametrize("name", _hooks())
def test_hook_is_documented_and_offered_no_secret(name: str) -> None:
    """Each says what it is for and what its arguments are; none is handed a key or a token."""
    function = _hooks()[name]
    documented = inspect.getdoc(function) or ""
    assert documented
    for argument in inspect.signature(function).parameters:
        assert f"{argument}: " in documented
        assert not {"key", "token", "pair", "settings"} & set(argument.split("_"))


def test_all_hooks_that_are_promised_are_there() -> None:
    """Startup, registration, resolve, snapshot change, decision; and one to tighten."""
    assert set(_hooks()) >= {
        "mesh_startup",
        "mesh_registration",
        "mesh_resolve",
        "mesh_snapshot",
        "mesh_restrict",
        "mesh_decision",
    }
