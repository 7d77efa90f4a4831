"""Limits at the broker: a token is a message."""
