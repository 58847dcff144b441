"""The dev agent's own rules, one by one."""
