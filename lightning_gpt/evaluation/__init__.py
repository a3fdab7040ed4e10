"""Evaluations: tasks over lm-eval's interface, programs that are executed, models rated against each other."""
