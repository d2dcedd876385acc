"""Schedules by trading days: a timetable, windows of sessions, and a deadline."""
