import json
import re
from pathlib import Path

import pytest

from lightning_gpt.cli import main
from lightning_gpt.nn.flops import parameters, training_flops_per_token
from lightning_gpt.planning.laws import BESIROGLU, PARAMETRIC
from lightning_gpt.planning.scaling_plan import Budget, make_plan

PUBLISHED = Path(__file__).parents[2] / "experiments" / "06_scaling" / "published.md"


def shown(capsys, *args):
    main(["plan", "scaling", *args])
    return capsys.readouterr().out


def test_a_budget_in_flops(capsys):
    text = shown(capsys, "--flops", "1e21")
    size, tokens = BESIROGLU.optimum(1e21)
    assert f"best size    {size / 1e9:.3g} G parameters" in text
    assert f"best tokens  {tokens / 1e9:.3g} G" in text
    assert "kaplan                4.68 G" in text
    plan = make_plan(Budget(flops=1e21))
    assert plan.training_flops == pytest.approx(1e21)
    assert f"{parameters(plan.network):,} parameters" in text
    assert plan.trained_tokens * training_flops_per_token(plan.network, 2048) == pytest.approx(1e21)


def test_a_machine_for_some_days_is_a_budget_and_takes_these_days(capsys):
    text = shown(capsys, "--gpus", "8xA100", "--days", "3", "--price", "2")
    assert f"budget       {8 * 312e12 * 0.4 * 3 * 86400:.3g} FLOPs = 8 x NVIDIA A100 SXM 80 GB for 3 days" in text
    row = next(line for line in text.splitlines() if line.startswith("  8 x NVIDIA A100"))
    assert row.split()[-5:] == ["312", "72", "3", "1,152", "230"]


def test_parameters_or_tokens_give_the_other(capsys):
    text = shown(capsys, "--params", "1.3e9")
    assert f"best tokens  {BESIROGLU.optimal_tokens(1.3e9) / 1e9:.3g} G" in text
    text = shown(capsys, "--tokens", "3e11")
    assert f"best size     {BESIROGLU.optimal_parameters(3e11) / 1e9:.3g} G parameters" in text


def test_both_are_judged(capsys):
    text = shown(capsys, "--params", "175e9", "--tokens", "300e9", "--gpus", "8xH100")
    assert "under-trained" in text
    assert "loss costs 1.92e+23 FLOPs at best" in text
    assert "more than 8 x 80 GB: at least 35 devices, sharded" in text
    assert "about optimal" in shown(capsys, "--params", "70e9", "--tokens", "1.4e12")


def test_the_loss_has_the_spread_of_the_published_fits():
    plan = make_plan(Budget(parameters=1e9, tokens=2e10))
    loss, low, high, what = plan.loss()
    losses = [law.loss(parameters(plan.network), 2e10) for law in PARAMETRIC]
    assert (low, high) == (min(losses), max(losses))
    assert loss == losses[0]
    assert "published fits" in what


def test_another_law_and_style(capsys):
    text = shown(capsys, "--flops", "1e21", "--law", "kaplan", "--style", "gpt")
    assert "best size     4.68 G parameters without embeddings" in text
    assert "nats a token of WebText2" in text
    assert "gpt: " in text
    assert "vocabulary 50,257" in text


def test_a_processor_by_its_measured_peak(capsys):
    text = shown(capsys, "--flops", "1.44e14", "--gpus", "cpu", "--peak_flops", "1e11", "--vocab", "256")
    row = next(line for line in text.splitlines() if line.startswith("  1 x processor"))
    assert row.split()[-5:] == ["0.1", "1", "0.0417", "-", "-"]


def test_the_picture_and_the_text_are_written(tmp_path, capsys):
    shown(capsys, "--flops", "1e20", "--figure", str(tmp_path / "a" / "f.png"), "--out", str(tmp_path / "plan.md"))
    assert (tmp_path / "a" / "f.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "plan.md").read_text()
    assert "lightning-gpt plan scaling --flops 1e+20 --figure" in text
    assert "best size" in text


def test_the_published_table_is_the_committed_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = re.search(r"^lightning-gpt (plan scaling --published .*)$", PUBLISHED.read_text(), re.MULTILINE)[1]
    main(command.split())
    assert (tmp_path / "experiments/06_scaling/published.md").read_text() == PUBLISHED.read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give exactly one of --flops, --gpus with --days, --params, --tokens"),
        (["--flops", "1e21", "--params", "1e9"], "got flops, parameters"),
        (["--flops", "1e21", "--gpus", "8xA100", "--days", "3"], "got flops and days"),
        (["--gpus", "8xA100"], "gpus=8xA100 needs --days to be a budget"),
        (["--gpus", "8xA100", "--days", "0"], "days=0 must be positive"),
        (["--gpus", "8xA100", "--days", "-2"], "days=-2 must be positive"),
        (["--gpus", "8xA1000", "--days", "3"], "accelerator 'A1000' is unknown, did you mean a100"),
        (["--gpus", "cpu", "--days", "3"], "the peak of cpu is 0 FLOP/s"),
        (["--gpus", "H100", "--days", "3", "--peak_flops", "0"], "peak_flops=0 must be positive"),
        (["--gpus", "H100", "--days", "3", "--price", "-1"], "price=-1 must not be negative"),
        (["--days", "3"], "days=3 is about a machine"),
        (["--flops", "1e21", "--price", "2"], "price=2 is about a machine"),
        (["--flops", "1e21", "--utilisation", "1.2"], "utilisation=1.2 is no share of the peak"),
        (["--flops", "-1"], "flops=-1 must be positive"),
        (["--flops", ".inf"], "flops=inf must be positive"),
        (["--params", "0"], "params=0 must be positive"),
        (["--flops", "1e21", "--law", "chinchila"], "law=chinchila is neither a published law nor a fit.json"),
        (["--flops", "1e21", "--law", "hofmann"], "did you mean hoffmann?"),
        (["--flops", "1e21", "--law", "none.json"], "law: none.json does not exist"),
        (["--flops", "1e21", "--style", "bert"], "style='bert' is unknown"),
        (["--flops", "1e21", "--context", "0"], "context=0 must be at least 1"),
        (["--published", "--flops", "1e21"], "published is a table of its own"),
        (["--published", "--law", "kaplan"], "law=kaplan tells no loss"),
    ],
)
def test_mistakes_are_one_line(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["plan", "scaling", *args])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_fit_of_another_format_is_refused(tmp_path, capsys):
    for content, message in (({"format": 2}, "has format 2, this version reads 1"), ({"a": 1}, "is not a fit.json")):
        path = tmp_path / "fit.json"
        path.write_text(json.dumps(content))
        with pytest.raises(SystemExit):
            main(["plan", "scaling", "--flops", "1e18", "--law", str(path)])
        assert message in capsys.readouterr().err
