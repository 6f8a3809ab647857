"""Other routers on the same fleet, with the same predictions."""
