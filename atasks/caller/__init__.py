"""Awaiting: arguments to a call, a reply to a value; streams, and threads that wait."""
