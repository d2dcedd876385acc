"""What a 429 means for everyone, and the pace of one run."""
