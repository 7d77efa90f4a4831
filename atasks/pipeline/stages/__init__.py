"""Stages: what a pipeline is made of, and the plan of a run."""
