"""Join a Consul service mesh from Python, with no sidecar proxy."""
