"""The hook, and how it is built from a connection."""
