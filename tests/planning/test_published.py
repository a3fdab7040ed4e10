import pytest

from lightning_gpt.planning.laws import BESIROGLU
from lightning_gpt.planning.published import PUBLISHED, judge, lost_range, published_table, short

MODELS = {model.name: model for model in PUBLISHED}


def verdict(name):
    return judge(BESIROGLU, MODELS[name].parameters, MODELS[name].tokens)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GPT-3 175B", "under-trained"),
        ("Gopher 280B", "under-trained"),
        ("MT-NLG 530B", "under-trained"),
        ("Chinchilla 70B", "about optimal"),
        ("LLaMA 7B", "over-trained"),
        ("LLaMA 65B", "about optimal"),
        ("LLaMA 3 8B", "over-trained"),
    ],
)
def test_verdicts(name, expected):
    one = verdict(name)
    assert one.verdict == expected
    assert one.flops == 6 * one.parameters * one.tokens
    assert one.loss >= one.best_loss
    assert 6 * one.best_parameters * one.best_tokens == pytest.approx(one.flops)


def test_chinchilla_beats_gopher_at_about_its_compute():
    # Hoffmann et al., 2022: the same budget, four times fewer parameters, a lower loss
    chinchilla, gopher = verdict("Chinchilla 70B"), verdict("Gopher 280B")
    assert chinchilla.loss < gopher.loss
    assert gopher.best_parameters == pytest.approx(67e9, rel=0.1)


def test_serving_pays_back_exactly_at_the_break_even():
    one = verdict("LLaMA 7B")
    served = one.break_even_tokens
    assert BESIROGLU.frontier_loss(one.equal_flops) == pytest.approx(one.loss)
    equal = one.equal_flops + 2 * one.equal_parameters * served
    assert one.flops + 2 * one.parameters * served == pytest.approx(equal)
    assert verdict("GPT-3 175B").break_even_tokens is None


def test_the_optimum_loses_nothing():
    one = judge(BESIROGLU, *BESIROGLU.optimum(1e22))
    assert one.loss == pytest.approx(one.best_loss)
    assert one.equal_flops == pytest.approx(one.flops)
    assert one.skew == pytest.approx(1)
    low, high = lost_range(70e9, 1.4e12)
    assert 0 <= low < high < 0.01


def test_the_table_has_every_model():
    lines = published_table(BESIROGLU).splitlines()
    assert len(lines) == len(PUBLISHED) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert "| GPT-3 175B | 175 G | 300 G | 3.15e+23 | 1.71 |" in lines[2]


@pytest.mark.parametrize(
    ("number", "text"), [(1.4e12, "1.4 T"), (999.9e6, "1 G"), (2.5e15, "2,500 T"), (12, "12"), (0, "0")]
)
def test_short_numbers(number, text):
    assert short(number) == text
