"""Asynchronous or not, and how stale: answers before the hours are spent."""
