"""Controlled experiments: one YAML, many training runs, one report with intervals."""

from lightning_gpt.experiments.report import write_report
from lightning_gpt.experiments.results import collect_results
from lightning_gpt.experiments.runner import run_cells
from lightning_gpt.experiments.spec import Experiment, load_experiment

__all__ = ["Experiment", "collect_results", "load_experiment", "run_cells", "write_report"]
