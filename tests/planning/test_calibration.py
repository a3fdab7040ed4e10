import pytest

from lightning_gpt.planning.calibration import INTERVALS, calibrate, calibration_from


def test_numbers_are_read_off_the_rows():
    """Five intervals of ten steps of 80 tokens, the first slow; a validation of three seconds; 20 s in all."""
    rates = [10, 400, 500, 400, 300]
    rows = [
        {"step": 10 * i, "progress/tokens": 800 * i, "speed/tokens_per_second": rate}
        for i, rate in enumerate(rates, start=1)
    ]
    found = calibration_from([*rows, {"step": 50, "speed/validation_seconds": 3.0}], wall=20.0)
    assert (found.tokens_per_second, found.steps, found.validation_seconds) == (400, 50, 3.0)
    assert found.step_seconds == pytest.approx(80 / 400)
    assert found.start_seconds == pytest.approx(20 - 50 * 0.2 - 3)
    assert found.run_seconds(1000, 4) == pytest.approx(7 + 200 + 12)


def test_a_real_run_is_calibrated_and_leaves_nothing(clean_process, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = calibrate(["-c", str(recipe)], steps=2 * INTERVALS + 1)
    assert found.steps == 2 * INTERVALS
    assert found.step_seconds > 0 and found.validation_seconds > 0 and found.start_seconds > 0.5
    assert not list(tmp_path.glob("runs*"))


def test_mistakes_are_told(recipe):
    with pytest.raises(ValueError, match=f"steps=3 must be at least {INTERVALS}"):
        calibrate(["-c", str(recipe)], steps=3)
    with pytest.raises(RuntimeError, match=r"the calibration run failed: .*max_stepz"):
        calibrate(["-c", str(recipe), "--trainer.max_stepz", "3"], steps=INTERVALS)
