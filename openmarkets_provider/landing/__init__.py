"""Landing the rows of a query as files in object storage, or in a table."""
