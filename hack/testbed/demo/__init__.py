"""The demo: a plan applied to the test bed, loaded, shown, changed under load, and shown again."""
