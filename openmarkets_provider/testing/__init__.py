"""What a site or a DAG author runs in tests of its own."""
