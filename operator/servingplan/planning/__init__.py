"""Which model gets which accelerators, and which share of which class goes to which model."""
