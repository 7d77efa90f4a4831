"""Items under way: channels, the workers of a stage, threads and processes."""
