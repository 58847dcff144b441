"""
The library whose clients this package is a door for: httpx, or its successor httpx2.

Owns that choice, and nothing else. `mesh_middleware.httpx2` is made of the very files of
`mesh_middleware.httpx`; what they import from here is what makes them two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__ != "mesh_middleware.httpx2":
    import httpx as httpx
else:
    try:
        import httpx2 as httpx
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "mesh_middleware.httpx2 needs its extra: pip install 'mesh-middleware[httpx2]'"
        ) from None

__all__ = ["httpx"]
