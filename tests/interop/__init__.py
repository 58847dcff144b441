"""Outsiders meet our services: raw sockets, curl, openssl, Consul's own proxy, each server."""
