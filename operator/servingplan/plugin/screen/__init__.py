"""``top``: plans at work on a terminal."""
