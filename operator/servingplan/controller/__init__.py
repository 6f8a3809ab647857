"""The slow loop: watch, decide, apply, report."""
