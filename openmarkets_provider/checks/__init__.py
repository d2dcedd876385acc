"""Checks: tasks that compare what was landed with what should be there."""
