import json

import pytest

from lightning_gpt.cli import main


@pytest.fixture
def staircase(tmp_path):
    """As `lightning-gpt load --steps` writes it: 50, 100, 200 and 300 requests/s, of which 300 are too many."""
    steps = []
    for rate, p99, errors in ((50, 80, 0), (100, 120, 0), (200, 400, 0), (300, 900, 0.01)):
        row = {"rate_from": rate, "rate_to": rate, "rate_ok": rate, "ok": 1000, "tokens": 16000, "error_rate": errors}
        steps.append({**row, "latency_ms": {"p50": p99 / 4, "p99": p99}})
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"steps": steps, "totals": {}}))
    return path


def test_replicas_and_cost_of_a_measured_staircase(staircase, tmp_path, capsys):
    figure, numbers = tmp_path / "plan.png", tmp_path / "plan.json"
    args = f"plan serving --rate 1000 --load {staircase} --gpus 1xL4 --spot_share 0.5 --day 0.3:14 --options int8=1.5"
    main([*args.split(), "--figure", str(figure), "--json", str(numbers)])
    text = capsys.readouterr().out
    assert "list price of" in text and "change me: --price" in text and "measured by the hour" in text
    assert figure.read_bytes().startswith(b"\x89PNG")
    found = json.loads(numbers.read_text())
    first, second = found["options"]
    assert (first["name"], first["rate_within"], first["replicas"]["needed"]) == ("measured", 200, 7)
    assert second["replicas"]["needed"] == 5 and second["dollars_per_month"] < first["dollars_per_month"]
    assert len(first["hours"]) == 24 and "measured    " in text
    main(["plan", "serving", "--rate", "10", "--load", str(staircase), "--tokens_out", "32"])
    text = capsys.readouterr().out
    assert "stretched to 32, which is not measured" in text and "price unknown" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "rate: give the requests"),
        ("--rate 10", "got none"),
        ("--rate 10 --tokens_per_s 5", "tokens_per_s and latency go together"),
        ("--rate 10 --tokens_per_s 5 --latency 1 --bench x", "got --bench, --tokens_per_s"),
        ("--rate 10 --tokens_per_s 900 --latency 1", "slo=0.5 s is not kept"),
        ("--rate 10 --tokens_per_s 900 --latency 0.1 --tokens_in 0", "tokens_in=0"),
        ("--rate 10 --load missing.json", "load=missing.json cannot be read"),
    ],
)
def test_mistakes_are_one_clear_line(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "serving", *args.split()])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
