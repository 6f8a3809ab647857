"""RouterWise (arXiv 2604.10907) as a baseline: its setup space, its algorithms, and the exact optimum in the same space."""
