"""The contracts: what a user writes, what the router reads."""
