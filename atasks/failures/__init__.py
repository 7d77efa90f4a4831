"""Exceptions to bytes and back."""
