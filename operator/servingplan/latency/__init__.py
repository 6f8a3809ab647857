"""How long a request takes on a replica under load."""
