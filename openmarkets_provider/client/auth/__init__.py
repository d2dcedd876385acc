"""Access tokens: their life, who gets one, the token request."""
