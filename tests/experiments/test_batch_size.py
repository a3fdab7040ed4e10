import json
import math
import os
import subprocess
import sys

import pytest

from lightning_gpt.cli import main
from lightning_gpt.experiments.batch_size import (
    Measured,
    Sizes,
    draw_sizes,
    find_sizes,
    measured_at,
    recommended,
    split,
)


class Machine:
    """Memory base + each * size; speed that levels off; what is tried is noted."""

    def __init__(self, each, base=1000, allowed=math.inf, half=4):
        self.each, self.base, self.allowed, self.half, self.tried = each, base, allowed, half, []

    def __call__(self, size):
        self.tried.append(size)
        if self.base + self.each * size > self.allowed:
            return None
        rate = 1e4 * size / (size + self.half)
        return Measured(size, rate, 10 * size / rate, self.base + self.each * size)


def test_on_a_gpu_the_largest_is_found_by_trying():
    machine = Machine(each=10, allowed=1000 + 10 * 13)
    sizes = find_sizes(machine, None)
    assert sizes.largest == 13 and not sizes.foretold
    assert [one.size for one in sizes.measured] == [1, 2, 4, 8, 12, 13]
    assert machine.tried == [1, 2, 4, 8, 16, 12, 14, 13]
    assert sizes.end == "16 windows do not fit"


def test_on_a_cpu_nothing_over_the_limit_is_tried():
    limit = 2000
    machine = Machine(each=10)
    sizes = find_sizes(machine, limit)
    # The straight line is exact here: 1000 + 10 n <= 0.95 * 2000 gives 90; found within a sixteenth.
    assert 85 <= sizes.largest <= 90
    assert all(1000 + 10 * size <= 0.95 * limit for size in machine.tried)
    assert "128 windows would need" in sizes.end


def test_a_slow_step_or_a_large_batch_ends_it():
    sizes = find_sizes(Machine(each=0), None, most=20)
    assert sizes.largest == 16 and sizes.end == "more than 20 windows were not asked for"
    machine = Machine(each=1, base=0)
    sizes = find_sizes(machine, 1000, slowest=0.0)
    assert machine.tried == [1] and sizes.largest == 1 and "a step of 1 windows takes" in sizes.end
    sizes = find_sizes(Machine(each=1, base=0), 1000, most=8)
    assert (sizes.largest, sizes.foretold) == (950, True), "foretold by the growth: 0.95 * 1000 / 1"


def test_not_even_one():
    with pytest.raises(ValueError, match="not even one window fits"):
        find_sizes(Machine(each=10, allowed=5), None)


def test_the_smallest_of_the_fast_and_the_accumulation():
    measured = [Measured(n, rate, 1.0, 1) for n, rate in ((1, 40), (2, 70), (3, 80), (4, 96), (8, 100), (16, 99))]
    assert recommended(measured).size == 4
    assert split(12, measured) == (measured[3], 3)
    assert split(6, measured) == (measured[2], 2), "80 is within 5% of the best of those that divide 6"
    assert split(5, [measured[1]]) is None


def test_the_size_of_a_whole_step_is_measured_too():
    machine = Machine(each=10, allowed=1000 + 10 * 13)
    sizes = measured_at(find_sizes(machine, None), 3, machine)
    assert [one.size for one in sizes.measured] == [1, 2, 3, 4, 8, 12, 13]
    tried = list(machine.tried)
    assert measured_at(sizes, 12, machine) == sizes and measured_at(sizes, 14, machine) == sizes
    assert machine.tried == tried, "known, or too large"


def test_the_picture(tmp_path):
    sizes = Sizes([Measured(n, 100 * n / (n + 1), 1.0, 2**30 + n * 2**20) for n in (1, 2, 4)], 4, False, "")
    draw_sizes(sizes, 2**31, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_a_real_run_and_one_over_its_limit(recipe, tmp_path):
    """A process each: two sizes measured; a limit that no run of Python keeps."""

    def call(*options):
        command = [sys.executable, "-m", "lightning_gpt", "experiment", "batch_size", "-c", str(recipe), *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = call("--data.block_size", "8", "--most", "2", "--steps", "2", "--noise", "8")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "runs/batch_size/batch_size.json").read_text())
    assert [one["size"] for one in found["measured"]] == [1, 2] and found["block_size"] == 8
    assert all(one["peak_bytes"] > 2**26 and one["tokens_per_second"] > 0 for one in found["measured"])
    report = (tmp_path / "runs/batch_size/batch_size.md").read_text()
    assert "| accumulation for 4 windows |" in report and "--data.batch_size" in report
    assert [(one["from_step"], one["to_step"], one["steps"]) for one in found["noise"]] == [
        (1, 2, 2), (3, 4, 2), (5, 6, 2), (7, 8, 2)
    ]  # fmt: skip
    assert all(one["noise"] > 0 for one in found["noise"])
    assert "Gradient noise scale, steps 7 to 8: " in done.stdout and "| 1 to 2 | " in report
    assert (tmp_path / "runs/batch_size/batch_size.png").exists()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["batch_size"], "nothing of the runs is kept"
    over = call("--memory", "50MiB")
    few = call("--noise", "3")
    assert few.returncode == 2 and "noise=3 must be 0 or at least 8 optimizer steps" in few.stderr
    assert over.returncode == 2 and "not even one window fits" in over.stderr
    assert "1 windows: do not fit" in over.stderr


def test_without_a_configuration(capsys, clean_process):
    for verb in ("batch_size", "lr_range"):
        with pytest.raises(SystemExit) as stop:
            main(["experiment", verb])
        assert stop.value.code == 2
        assert "no configuration: give -c" in capsys.readouterr().err
