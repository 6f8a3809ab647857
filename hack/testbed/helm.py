"""One Helm operation in a process of its own: `python -m testbed.helm`, reading what to do from standard input.

The Helm library is a Go runtime whose threads start when it is imported, in the network where its process stands then. A
process that joins a bed later would leave them outside; a process made for the operation has none from before.
"""

import json
import sys
from typing import Any

from helm_python import Config


def main() -> None:
    """Carry out `{kubeconfig, namespace, operation, arguments, options}`."""
    task: dict[str, Any] = json.load(sys.stdin)
    with Config(kubeconfig_path=task["kubeconfig"], namespace=task["namespace"]) as helm:
        getattr(helm, task["operation"])(*task["arguments"], **task["options"])


if __name__ == "__main__":
    main()
