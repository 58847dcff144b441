"""Ends an asyncio server of a test's own, and loses nobody who has just called."""

from __future__ import annotations

import asyncio

from mesh_middleware.dev.server import stop_accepting


async def close_server(server: asyncio.Server) -> None:
    """Close *server*; what it has accepted has begun, and is the caller's to end."""
    for listening in server.sockets:
        await stop_accepting(listening.fileno())
    server.close()
