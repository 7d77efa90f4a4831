"""Runs on the workers, which outlive the program that submitted them."""
