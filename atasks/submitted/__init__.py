"""Calls and runs of pipelines that were handed over to the workers, and that nobody has to await."""
