"""A cluster, its traffic and its Prometheus in virtual time, around the controller's own decisions."""
