"""Calls that resume: a run goes on where the one before it ended."""
