"""What experiments measure where nothing is trained (experiments/measurement.py)."""
