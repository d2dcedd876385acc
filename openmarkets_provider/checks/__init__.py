"""Checks: tasks that compare what was landed with what must be there."""
