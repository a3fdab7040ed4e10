import numpy as np
import pytest

from lightning_gpt.load.arrivals import Segment, arrival_times, parse_steps
from lightning_gpt.load.mixture import Mixture
from lightning_gpt.load.prompts import BUILTIN, read_prompts


def due(steps, arrivals="constant", burst=1, seed=0, most=None):
    return arrival_times(parse_steps(steps), arrivals, burst, seed, most)


def test_even_arrivals_are_exact_on_stairs_and_ramps():
    assert due("4:1").tolist() == [0, 0.25, 0.5, 0.75]
    assert due("2:1,4:1").tolist() == [0, 0.5, 1, 1.25, 1.5, 1.75]
    # On a ramp from 0 to 8/s in 4 s, t*t requests are due by t.
    assert np.allclose(due("0-8:4"), np.sqrt(np.arange(16)))
    falling = due("8-0:4")
    assert len(falling) == 16 and np.all(np.diff(np.diff(falling)) > 0)
    assert np.allclose(falling[1:], 4 - np.sqrt(np.arange(15, 0, -1)))
    assert due("0:3,1:1").tolist() == [3]
    assert len(due("100:1,200:1,400:1")) == 700


def test_bursts_keep_the_rate():
    times = due("10:2", burst=5)
    assert times.tolist() == [0.0] * 5 + [0.5] * 5 + [1.0] * 5 + [1.5] * 5
    drawn = due("1000:20", "poisson", burst=10)
    assert abs(len(drawn) - 20_000) < 6 * np.sqrt(10 * 20_000) and len(drawn) % 10 == 0
    assert np.all(drawn.reshape(-1, 10) == drawn[::10, None])


def test_poisson_arrivals_have_the_rate_and_the_spread_of_poisson():
    times = due("1000:60", "poisson")
    assert abs(len(times) - 60_000) < 5 * np.sqrt(60_000)
    gaps = np.diff(times)
    assert abs(gaps.mean() * 1000 - 1) < 0.02 and abs(gaps.std() * 1000 - 1) < 0.03
    counts = np.bincount(times.astype(int), minlength=60)
    assert 0.5 < counts.var() / counts.mean() < 1.7
    assert times[-1] < 60 and np.all(gaps >= 0)
    rising = due("0-2000:10", "poisson")
    assert abs((rising < 5).mean() - 0.25) < 0.03


def test_arrivals_depend_on_the_seed_alone():
    assert np.array_equal(due("50:10", "poisson", seed=3), due("50:10", "poisson", seed=3))
    assert not np.array_equal(due("50:10", "poisson", seed=3)[:10], due("50:10", "poisson", seed=4)[:10])
    assert np.array_equal(due("50:10", "poisson", most=7), due("50:10", "poisson")[:7])


@pytest.mark.parametrize("text", ["100", "100:", "x:1", "1:0", "-1:2", "1:2;3:4", "nan:1", "1:inf", "0:5"])
def test_steps_that_cannot_be_are_refused(text):
    with pytest.raises(ValueError, match=f"steps={text}"):
        parse_steps(text)


def test_too_many_requests_are_refused_before_memory_is():
    with pytest.raises(ValueError, match="too many to plan"):
        arrival_times([Segment(1e6, 1e6, 1e6)], "poisson", 1, 0)


def test_mixtures_are_drawn_by_their_shares():
    rng = np.random.default_rng(0)
    assert set(Mixture.parse("x", "16").draw(rng, 50)) == {16}
    assert set(Mixture.parse("x", "2-4").draw(rng, 200)) == {2, 3, 4}
    drawn = Mixture.parse("x", "16:2,64:1,100-101:1").draw(rng, 20_000)
    assert abs((drawn == 16).mean() - 0.5) < 0.02 and abs((drawn == 64).mean() - 0.25) < 0.02
    for text in ("", "0", "4-2", "a", "4:0", "4:-1", "4:x", "1.5", "-3"):
        with pytest.raises(ValueError, match=f"max_tokens={text}"):
            Mixture.parse("max_tokens", text)


def test_prompts_come_from_files_and_from_drawn_words(tmp_path):
    assert read_prompts("builtin", None, 5, 0) == BUILTIN.splitlines()
    made = read_prompts("builtin", "3:0.5,7:0.5", 40, 1)
    assert len(made) == 40 and {len(one.split()) for one in made} == {3, 7}
    assert made == read_prompts("builtin", "3:0.5,7:0.5", 40, 1) != read_prompts("builtin", "3:0.5,7:0.5", 40, 2)
    path = tmp_path / "prompts.jsonl"
    talk = [{"role": "user", "content": "né\u2028"}]
    path.write_text('plain words\n\n{"prompt": "p"}\n{"messages": [{"role": "user", "content": "né\u2028"}]}\n')
    assert read_prompts(str(path), None, 5, 0) == ["plain words", "p", talk]
    for text, match in (("\n", "holds no prompt"), ("a\n{broken", "line 2"), ('{"x": 1}', "line 1 needs")):
        path.write_text(text)
        with pytest.raises(ValueError, match=match):
            read_prompts(str(path), None, 5, 0)
