"""Joint allocation and routing of language models on a GPU cluster."""
