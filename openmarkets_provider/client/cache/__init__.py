"""Where processes share small records."""
