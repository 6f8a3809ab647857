"""Which replica serves a request, decided one request at a time from live state and the plan's prices.

``brain`` is the whole; the algorithm, with its sources, stands in ``rule`` (RouteBalance, arXiv 2606.17949, in absolute units).
"""
