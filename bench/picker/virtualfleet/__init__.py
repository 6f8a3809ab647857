"""Thirteen instances of four sizes in virtual time, the prompts they get, and what a router makes of them."""
