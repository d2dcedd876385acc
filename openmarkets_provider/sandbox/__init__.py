"""A local stand-in for Openmarkets' identity server and APIs, based on their public documentation."""
