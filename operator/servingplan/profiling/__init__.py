"""Measures how fast one model server is, and writes the profile that a plan takes."""
