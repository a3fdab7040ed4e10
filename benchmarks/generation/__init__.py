"""Engines that continue the same prompts, each a script of its own for its own Python (benchmarks/inference.py)."""
