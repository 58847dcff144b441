"""Consul's HTTP API: its JSON, its blocking queries, and the client that speaks it."""
