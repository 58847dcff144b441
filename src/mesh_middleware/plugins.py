"""
Finds, orders and calls plugins, and guards the host from them.

Owns the plugins of one mesh, as pluggy has found them good; where there are none, pluggy is not
loaded. A watching hook that raises is logged and forgotten; a restricting hook that raises means
no.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pluggy

    from .hookspecs import hookimpl as hookimpl
    from .identity import SpiffeId
    from .intentions import Decision, RequestFacts
    from .routing.report import AttemptReport
    from .snapshot import Snapshot

GROUP = "mesh_middleware"
"""Entry-point group of plugins."""

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
        given = tuple(plugins)
        self._names: list[str] = []
        self._hooks: Mapping[str, Sequence[pluggy.HookImpl]] = {}
        if given or (installed and _any_installed()):
            manager = _load(given, installed)
            self._names = [name for name, _ in manager.list_name_plugin()]
            self._hooks = _implementations(manager)
        # Asked once: a request whose mesh has no such plugin pays nothing for the hook.
        self.watches_decisions = bool(self._hooks.get("mesh_decision"))
        self.watches_attempts = bool(self._hooks.get("mesh_attempt"))
        self.restricts = bool(self._hooks.get("mesh_restrict"))

    def names(self) -> list[str]:
        """Names of the plugins, in the order they were registered."""
        return list(self._names)

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
            BaseException: whatever the plugin raised; an upstream is not looked up elsewhere
                instead.
        """
        for implementation in self._hooks.get("mesh_resolve", ()):
            found = _ask(implementation, upstream=upstream, datacenter=datacenter)
            if found is not None:
                return cast(Sequence[Any], found)
        return None

    def permits(self, source: SpiffeId, facts: RequestFacts) -> bool:
        """
        Ask `mesh_restrict`.

        Returns:
            ``False`` as soon as one plugin says so.

        Raises:
            BaseException: whatever a plugin raised, or that it answered neither yes, no nor
                nothing; the caller denies.
        """
        for implementation in self._hooks.get("mesh_restrict", ()):
            answer = _ask(implementation, source=source, facts=facts)
            if answer is False:
                return False
            if answer is not None and answer is not True:
                name = implementation.plugin_name
                raise TypeError(f"plugin {name!r}: mesh_restrict answered {type(answer).__name__}")
        return True

    def _tell(self, hook: str, **values: object) -> None:
        # One implementation at a time: pluggy stops at the first that raises, and a plugin must
        # not keep another from being told.
        for implementation in self._hooks.get(hook, ()):
            try:
                _ask(implementation, **values)
            except BaseException as error:
                if is_interrupt(error):
                    raise
                _log.exception("plugin %s failed in %s", implementation.plugin_name, hook)


def is_interrupt(error: BaseException) -> bool:
    """
    Whether *error* may be the user's Ctrl-C, which goes to the main thread, and is not a plugin's.

    A hook is a plain function: nothing else that it raises comes from outside of it, an
    ``asyncio.CancelledError`` included.
    """
    here = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and here


def _ask(implementation: pluggy.HookImpl, **values: object) -> object:
    return implementation.function(**{name: values[name] for name in implementation.argnames})


def _any_installed() -> bool:
    from importlib.metadata import entry_points

    return bool(entry_points(group=GROUP))


def _load(given: Iterable[object], installed: bool) -> pluggy.PluginManager:
    import pluggy

    from . import hookspecs

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    if installed:
        manager.load_setuptools_entrypoints(GROUP)
    for plugin in given:
        manager.register(plugin)
    manager.check_pending()
    _refuse_odd_functions(manager)
    return manager


def _implementations(manager: pluggy.PluginManager) -> dict[str, tuple[pluggy.HookImpl, ...]]:
    """By hook its implementations, in the order they are called."""
    from . import hookspecs

    names = [name for name in vars(hookspecs) if name.startswith("mesh_")]
    return {name: tuple(reversed(getattr(manager.hook, name).get_hookimpls())) for name in names}


def _refuse_odd_functions(manager: pluggy.PluginManager) -> None:
    import pluggy

    # A coroutine that nobody awaits is not False: an async mesh_restrict would permit all. And
    # a wrapper around the others could take their no back.
    for plugin in manager.get_plugins():
        for caller in manager.get_hookcallers(plugin) or ():
            for one in caller.get_hookimpls():
                is_async = inspect.iscoroutinefunction(one.function)
                if is_async or one.wrapper or one.hookwrapper:
                    raise pluggy.PluginValidationError(
                        one.plugin,
                        f"plugin {one.plugin_name!r}: {caller.name} is "
                        f"{'async' if is_async else 'a wrapper'}; hooks are plain functions",
                    )


def __getattr__(name: str) -> Any:
    if name == "hookimpl":
        from .hookspecs import hookimpl

        return hookimpl
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
