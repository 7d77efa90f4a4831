"""Programs to read first and to run: `atasks run scenarios/tour.py`."""
