import pytest

from lightning_gpt.planning.accelerators import ACCELERATORS, Machine, find_accelerator, parse_machine


def test_eight_a100_for_three_days():
    machine = parse_machine("8xA100")
    assert machine.flops(3) == pytest.approx(8 * 312e12 * 0.4 * 3 * 24 * 3600)
    assert machine.hours(machine.flops(3)) == pytest.approx(72)
    assert machine.dollars(machine.flops(3)) == pytest.approx(72 * 8 * machine.accelerator.price)
    assert machine.kilowatt_hours(machine.flops(3)) == pytest.approx(72 * 8 * 0.4)


@pytest.mark.parametrize(
    ("text", "name", "devices"),
    [("h100", "h100", 1), ("8 x H100 SXM", "h100", 8), ("2x4090", "rtx-4090", 2), ("64xtpu_v5e", "tpu-v5e", 64)],
)
def test_ways_to_write_a_machine(text, name, devices):
    machine = parse_machine(text)
    assert (machine.accelerator.name, machine.devices) == (name, devices)


def test_the_table_has_the_usual_devices():
    for name in ("a100-40gb", "a100-80gb", "h100", "h200", "b200", "l4", "rtx-4090", "t4", "v100", "mi300x", "tpu-v4"):
        one = find_accelerator(name)
        assert one.peak_flops > 1e13
        assert one.memory >= 16e9
        assert one.price > 0
    assert all(one.name == name for name, one in ACCELERATORS.items())


def test_own_price_and_peak():
    machine = parse_machine("cpu", utilisation=1.0, price=0.05, peak_flops=1e11)
    assert machine.hours(3.6e14) == pytest.approx(1)
    assert machine.dollars(3.6e14) == pytest.approx(0.05)
    assert machine.kilowatt_hours(3.6e14) is None
    assert parse_machine("tpu-v5e").kilowatt_hours(1e18) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_machine("8xA1000"), "accelerator 'A1000' is unknown, did you mean a100"),
        (lambda: parse_machine("cpu"), "the peak of cpu is 0 FLOP/s: measure it"),
        (lambda: parse_machine("0xH100"), "gpus: 0 devices"),
        (lambda: parse_machine("-2xH100"), "gpus: -2 devices"),
        (lambda: parse_machine(" "), "must read like 8xA100"),
        (lambda: parse_machine("H100", 1.5), "utilisation=1.5 is no share of the peak"),
        (lambda: parse_machine("H100", 0.0), "utilisation=0 is no share"),
        (lambda: parse_machine("H100", price=-1.0), "price=-1 must not be negative"),
        (lambda: parse_machine("H100", peak_flops=0.0), "peak_flops=0 must be positive"),
        (lambda: parse_machine("H100").flops(0), "days=0 must be positive"),
        (lambda: parse_machine("H100").flops(float("inf")), "days=inf must be positive"),
        (lambda: Machine(ACCELERATORS["h100"], 1, float("nan")), "utilisation=nan"),
    ],
)
def test_absurd_machines(call, message):
    with pytest.raises(ValueError, match=message):
        call()
