"""
Hypercorn's configuration with every setting from the environment.

``hypercorn --config python:mesh_middleware.servers.hypercorn app:app``

Holds nothing but names that Hypercorn reads: it copies every name of this module into its
configuration and pickles that for its workers. ``MESH_BIND`` is the address to serve at, several
with commas; ``127.0.0.1:8000`` unless set.
"""

import os

bind = [each.strip() for each in (os.environ.get("MESH_BIND") or "127.0.0.1:8000").split(",")]
certfile = "mesh"
keyfile = "mesh"
