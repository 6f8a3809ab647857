"""HTTP/2 with gRPC on it (RFC 9113), as far as an Envoy on a Unix socket asks for it: see ``connection``."""
