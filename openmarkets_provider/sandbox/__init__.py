"""A local stand-in for Openmarkets' identity server and APIs, made from their public documentation."""
