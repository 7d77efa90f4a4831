"""Tokens of limits: who may begin."""
