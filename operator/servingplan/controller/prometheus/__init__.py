"""Prometheus as the operator sees it: what is asked, how the answers become the readings of a plan."""
