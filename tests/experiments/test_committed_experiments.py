"""Every experiment of the repository is well-formed, and every setting it makes is one that training has."""

from pathlib import Path

import pytest
import yaml

from lightning_gpt.experiments import load_experiment
from lightning_gpt.experiments.plan import QUIET
from lightning_gpt.experiments.settings import nested

ROOT = Path(__file__).parents[2]
FILES = sorted(ROOT.glob("experiments/*/*.yaml"))


@pytest.fixture(scope="module")
def fit_parser():
    """The parser of `lightning-gpt fit`, taken before it parses anything."""
    from lightning_gpt.cli import training

    class Taken(Exception):
        pass

    class OnlyParser(training.TrainingCLI):
        def parse_arguments(self, parser, args):
            raise Taken(parser)

    original, training.TrainingCLI = training.TrainingCLI, OnlyParser
    try:
        training.run_training("fit", [])
    except Taken as taken:
        parser = taken.args[0]
    finally:
        training.TrainingCLI = original
    return parser


def test_there_are_experiments():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_settings_exist(path, fit_parser, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = load_experiment(path.relative_to(ROOT))
    assert experiment.expectation, "say what is expected before it is run"
    assert f"lightning-gpt experiment run {path.relative_to(ROOT).as_posix()}" in path.read_text()
    for variant in experiment.variants.values():
        config = tmp_path / f"{variant.name}.yaml"
        config.write_text(yaml.safe_dump(nested({**QUIET, **experiment.overrides, **variant.overrides})))
        arguments = [part for one in (*experiment.configs, config) for part in ("-c", str(one))]
        settings = fit_parser.parse_args(["fit", *arguments])["fit"]
        for key, value in {**experiment.overrides, **variant.overrides}.items():
            if isinstance(value, bool | int | float | str):
                assert settings[key] == value, f"{variant.name}: {key}"
