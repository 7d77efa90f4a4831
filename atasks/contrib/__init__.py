"""Bridges to other packages. Nothing in atasks imports them, and each needs an extra of its name."""
