"""Trading days and sessions of the exchange. Pure: it depends on the standard library and pendulum only."""
