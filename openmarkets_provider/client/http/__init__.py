"""HTTP: clients, deadlines, size limits, replies."""
