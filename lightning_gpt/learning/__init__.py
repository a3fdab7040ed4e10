"""Exercises of the learning path: what to do, hints, and how an answer is judged."""
