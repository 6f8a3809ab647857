"""A look-alike of the vLLM server, and its engine in virtual time."""
