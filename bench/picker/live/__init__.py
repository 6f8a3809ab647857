"""The endpoint picker on real parts: Envoy, picker and load as processes of their own, all pods in one more."""
