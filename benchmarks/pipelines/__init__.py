"""`python -m benchmarks.pipelines`: pipelines beside their peers."""
