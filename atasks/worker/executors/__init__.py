"""Threads and processes of a worker, in which blocking functions run."""
