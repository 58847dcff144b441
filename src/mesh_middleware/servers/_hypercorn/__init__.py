"""How this package joins Hypercorn: what is not part of its public configuration module."""
