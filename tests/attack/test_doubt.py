"""What is not known allows nothing: entries that are refused, answers that plugins do not mean."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pluggy
import pytest

from mesh_middleware import Mesh, MeshAuthz
from mesh_middleware.dev import DevAgent
from mesh_middleware.identity import ServiceId, SpiffeId
from mesh_middleware.intentions import HttpFacts, RequestFacts
from mesh_middleware.plugins import Plugins, hookimpl

from ..support.certs import TRUST_DOMAIN
from ..support.doors import App, Exchange, Inside
from ..test_entries import PATIENCE, Issuer, decide, demand

ORDER = ServiceId(TRUST_DOMAIN, "default", "dc1", "order")


@pytest.mark.parametrize("entry", ["service-defaults", "proxy-defaults"])
def test_a_protocol_that_may_not_be_read_is_not_tcp(entry: str, agent: DevAgent) -> None:
    """On tcp no token is asked for: a 403 must not turn one demanded on http into none."""
    issuer = Issuer()
    try:
        demand(agent, issuer.local())
    finally:
        issuer.close()
    agent.set_protocol("tax", "http")
    fault = agent.faults.begin("forbid", f"/v1/config/{entry}")
    with Mesh("tax", agent=agent.url, plugins=()) as mesh:
        assert mesh.wait_for(lambda s: s.joined and s.default_allow is not None, PATIENCE)
        assert not mesh.ready(0.5)
        assert decide(mesh).reason == "no_policy"
        assert mesh.status()["troubles"].keys() == {entry}
        fault.end()


@pytest.mark.parametrize("keys", [{"Local": {"JWKS": "%%%"}}, {"Local": {}, "Strange": 1}])
def test_claims_of_a_provider_that_cannot_be_read_cannot_be_forged(keys: dict[str, Any]) -> None:
    """Whoever needs no token must not write what another's verified token would say."""
    with Inside() as inside:
        inside.agent.set_protocol("tax", "http")
        forwarding = {"HeaderName": "X-Claims"}
        inside.agent.put_entry(Issuer.entry(**keys) | {"Forwarding": forwarding})
        jwt = {"Providers": [{"Name": "okta"}]}
        permission = {"Action": "allow", "HTTP": {"PathPrefix": "/"}, "JWT": jwt}
        inside.agent.permissions("order", "tax", [permission])
        app, lines = App(), [(b"host", b"tax"), (b"x-claims", b"forged"), (b"x_claims", b"forged")]
        assert inside.mesh.wait_for(lambda s: s.conditions.withheld == ("x-claims",), PATIENCE)
        exchange = Exchange("/", headers=lines)
        inside.run(lambda: exchange.through(MeshAuthz(app, mesh=inside.mesh)))
        assert exchange.status == 200
        assert app.scopes[0]["headers"] == [(b"host", b"tax")]


class Later:
    """Something to be awaited, which nobody does."""

    def __await__(self) -> Any:
        raise AssertionError("nobody awaits it")
        yield


class Answers:
    """Says something that is neither yes nor no."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    @hookimpl
    def mesh_restrict(self, source: SpiffeId, facts: RequestFacts) -> Any:
        return self._answer


class Streams:
    """An asynchronous generator, which pluggy takes for an ordinary function."""

    @hookimpl
    async def mesh_restrict(self, source: SpiffeId) -> AsyncIterator[bool]:
        yield False


class Overrules:
    """A wrapper around the others that makes their no a yes."""

    @hookimpl(wrapper=True)
    def mesh_restrict(self, source: SpiffeId) -> Iterator[Any]:
        yield
        return []


@pytest.mark.parametrize(
    "plugin",
    [Answers(0), Answers("deny"), Answers(Later()), Answers([]), Streams()],
    ids=["zero", "text", "awaitable", "list", "generator"],
)
def test_an_answer_that_is_none_of_the_three_is_an_error(plugin: object) -> None:
    """``None``, ``True`` and ``False`` can be meant; of anything else nobody knows."""
    plugins = Plugins([plugin], installed=False)
    with pytest.raises(TypeError, match="mesh_restrict answered"):
        plugins.permits(ORDER, HttpFacts(b"GET", b"/"))


def test_no_wrapper_makes_a_no_a_yes() -> None:
    """A plugin may say no; none may take another's no back."""
    with pytest.raises(pluggy.PluginValidationError, match="mesh_restrict is a wrapper"):
        Plugins([Answers(False), Overrules()], installed=False)
