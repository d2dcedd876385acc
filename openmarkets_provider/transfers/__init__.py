"""Transfers: tasks that land what a query gives."""
