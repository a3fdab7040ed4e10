"""Weights in 8 and 4 bits: calibration and the methods."""
