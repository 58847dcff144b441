"""Doors of servers: each gives its server our TLS context and binds the peer to the connection."""
