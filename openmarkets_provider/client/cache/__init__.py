"""Where processes share small entries: tokens and holds."""
