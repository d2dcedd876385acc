"""The hook, and what it makes from a connection."""
