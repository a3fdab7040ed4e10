import torch

from lightning_gpt.callbacks.attention_maps import attention_weights, draw_attention
from lightning_gpt.nn import GPT, GPTConfig


def test_weights_are_those_of_the_network():
    torch.manual_seed(0)
    net = GPT(GPTConfig(vocab_size=9, block_size=16, n_layer=3, n_head=4, n_kv_head=2, n_embd=32, window=4)).eval()
    weights = attention_weights(net, list(range(8)))
    assert weights.shape == (3, 4, 8, 8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 8))
    distance = torch.arange(8)[:, None] - torch.arange(8)
    assert not weights[..., (distance < 0) | (distance >= 4)].any()
    figure = draw_attention(weights, list("abcdefgh"), layers=[0, 2])
    assert len(figure.axes) == 8


def test_a_run_draws_them(lightning_gpt):
    run = lightning_gpt("fit", "--attention.text", "to be or", "--run.tensorboard", "true")
    assert (run / "attention.png").stat().st_size > 5000
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert "attention" in EventAccumulator(str(run)).Reload().Tags()["images"]
