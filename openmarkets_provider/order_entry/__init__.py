"""What an order is, and what is known of it: terms, tag, limits, states. Pure."""
