"""Access tokens: their lifetime, the provider that shares them, and the token request."""
