"""What can be asked of the APIs, and what comes back: pure, without I/O."""
