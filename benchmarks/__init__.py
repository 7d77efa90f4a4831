"""The harness that measures atasks beside its peers in one run: `python -m benchmarks`."""
