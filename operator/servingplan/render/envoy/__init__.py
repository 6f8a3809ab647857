"""The router: the Envoy configuration made from a routing table.

What stays for the life of a pod is the bootstrap (listeners, filters, logs, metrics). What moves with the plan are two
files that Envoy watches: ``cds.yaml`` with the clusters and ``rds.yaml`` with the routes. ``picker`` is how Envoy asks the
picker beside it.
"""

from servingplan.render.envoy.bootstrap import BootstrapPaths, bootstrap
from servingplan.render.envoy.document import dump
from servingplan.render.envoy.files import files

__all__ = ["BootstrapPaths", "bootstrap", "dump", "files"]
