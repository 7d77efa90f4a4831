"""Policies of an atask: when a call is tried again, and how many may run at a time."""
