"""From a decision to the Kubernetes objects that carry it out, as plain dicts."""
