"""One suite against the dev agent and a real Consul: whoever passes it is an agent to us."""
