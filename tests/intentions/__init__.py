"""The rules: who may send which request. Values in, verdicts out; nothing touches a network."""
