"""``kubectl servingplan``: plans on a cluster, looked at, approved and paused with the rights of whoever does it."""
