"""Our verdicts against those of the real Envoy."""
