"""How a request is judged, between a server and an application."""
