"""Figures as a status shows them."""

from __future__ import annotations


def shown(value: float) -> str:
    """Four significant digits, without an exponent or trailing zeros."""
    text = f"{value:.4g}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if "e" in text else text
