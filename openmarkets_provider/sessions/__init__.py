"""Trading days and sessions of the exchange. Pure: only the standard library and pendulum are imported."""
