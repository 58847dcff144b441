"""
Finds, orders and calls plugins, and guards the host from them.

Owns the pluggy manager of one mesh. A watching hook that raises is logged and forgotten; a
restricting hook that raises means no.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs

if TYPE_CHECKING:
    from .identity import SpiffeId
    from .intentions import Decision, RequestFacts
    from .routing.report import AttemptReport
    from .snapshot import Snapshot

hookimpl = pluggy.HookimplMarker(hookspecs.PROJECT)
"""Marks a function as the implementation of a hook: ``@hookimpl``."""

_log = logging.getLogger("mesh_middleware.plugins")


class Plugins:
    """
    The plugins of one mesh.

    Args:
        plugins: modules or objects with `hookimpl` functions, registered after the installed ones.
        installed: whether distributions that declare the entry-point group ``mesh_middleware``
            are loaded too.
    """

    def __init__(self, plugins: Iterable[object] = (), *, installed: bool = True) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        if installed:
            self._manager.load_setuptools_entrypoints(hookspecs.PROJECT)
        for plugin in plugins:
            self._manager.register(plugin)
        self._manager.check_pending()
        self._refuse_odd_functions()
        # Asked once: a request whose mesh has no such plugin pays nothing for the hook.
        self.watches_decisions = bool(self._manager.hook.mesh_decision.get_hookimpls())
        self.watches_attempts = bool(self._manager.hook.mesh_attempt.get_hookimpls())
        self.restricts = bool(self._manager.hook.mesh_restrict.get_hookimpls())

    def names(self) -> list[str]:
        """Names of the plugins, in the order they were registered."""
        return [name for name, _ in self._manager.list_name_plugin()]

    def startup(self, service: str, agent: str) -> None:
        """Tell `mesh_startup`."""
        self._tell("mesh_startup", service=service, agent=agent)

    def registration(self, service_id: str, registered: bool) -> None:
        """Tell `mesh_registration`."""
        self._tell("mesh_registration", service_id=service_id, registered=registered)

    def snapshot(self, old: Snapshot, new: Snapshot) -> None:
        """Tell `mesh_snapshot`."""
        self._tell("mesh_snapshot", old=old, new=new)

    def decision(self, decision: Decision, source: SpiffeId | None, facts: RequestFacts) -> None:
        """Tell `mesh_decision`."""
        self._tell("mesh_decision", decision=decision, source=source, facts=facts)

    def attempt(self, attempt: AttemptReport) -> None:
        """Tell `mesh_attempt`."""
        self._tell("mesh_attempt", attempt=attempt)

    def resolve(self, upstream: str, datacenter: str | None) -> Sequence[Any] | None:
        """
        Ask `mesh_resolve`.

        Raises:
            Exception: whatever the plugin raised; an upstream is not looked up elsewhere instead.
        """
        found: Sequence[Any] | None = self._manager.hook.mesh_resolve(
            upstream=upstream, datacenter=datacenter
        )
        return found

    def permits(self, source: SpiffeId, facts: RequestFacts) -> bool:
        """
        Ask `mesh_restrict`.

        Returns:
            ``False`` as soon as one plugin says so.

        Raises:
            Exception: whatever a plugin raised, or that it answered neither yes, no nor nothing;
                the caller denies.
        """
        for implementation in reversed(self._manager.hook.mesh_restrict.get_hookimpls()):
            answer = _ask(implementation, source=source, facts=facts)
            if answer is False:
                return False
            if answer is not None and answer is not True:
                name = implementation.plugin_name
                raise TypeError(f"plugin {name!r}: mesh_restrict answered {type(answer).__name__}")
        return True

    def _refuse_odd_functions(self) -> None:
        # A coroutine that nobody awaits is not False: an async mesh_restrict would permit all. And
        # a wrapper around the others could take their no back.
        for plugin in self._manager.get_plugins():
            for caller in self._manager.get_hookcallers(plugin) or ():
                for one in caller.get_hookimpls():
                    is_async = inspect.iscoroutinefunction(one.function)
                    if is_async or one.wrapper or one.hookwrapper:
                        raise pluggy.PluginValidationError(
                            one.plugin,
                            f"plugin {one.plugin_name!r}: {caller.name} is "
                            f"{'async' if is_async else 'a wrapper'}; hooks are plain functions",
                        )

    def _tell(self, hook: str, **values: object) -> None:
        # One implementation at a time: pluggy stops at the first that raises, and a plugin must
        # not keep another from being told.
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                _ask(implementation, **values)
            except Exception:
                _log.exception("plugin %s failed in %s", implementation.plugin_name, hook)


def _ask(implementation: pluggy.HookImpl, **values: object) -> object:
    return implementation.function(**{name: values[name] for name in implementation.argnames})
