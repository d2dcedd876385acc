"""HTTP: clients, deadlines, bounds, replies."""
