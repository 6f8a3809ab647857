"""Which replica serves a request, decided one request at a time from live state and the plan's prices."""
