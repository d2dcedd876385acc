"""Transfers: tasks that land the rows of a query."""
