"""
The outbound door for httpx2, the maintained successor of httpx: all of `mesh_middleware.httpx`.

Owns nothing: its modules are the files of `mesh_middleware.httpx`, loaded once more under this
name, with httpx2 where those have httpx. Needs the extra ``httpx2``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import httpx as _same

if TYPE_CHECKING:
    from ..httpx import *  # noqa: F403

__path__ = [str(Path(__file__).parent.with_name("httpx"))]
__all__ = _same.__all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = getattr(_same, name).__module__.rpartition(".")[2]
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
