"""Queries and their rows: pure, without I/O."""
