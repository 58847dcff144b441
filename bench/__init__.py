"""What `make bench` measures: the mesh against plain mutual TLS, and against Envoy."""
