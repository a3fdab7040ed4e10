import pytest
import torch

from lightning_gpt.hub import load_model, save_model
from lightning_gpt.hub.growth import grown
from lightning_gpt.nn import GPTConfig
from lightning_gpt.text.special_tokens import with_special_token

SHAPE = {"vocab_size": 257, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 32}
LLAMA = {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "bias": False, "tie_embeddings": False}
IDS = torch.randint(257, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "changes", [{}, {"vocab_multiple": 64}, LLAMA, {"position": "alibi", "logit_softcap": 5.0, "vocab_multiple": 256}]
)
@torch.no_grad()
def test_old_ids_keep_their_logits_and_new_ones_get_the_mean(changes, make_network):
    net = make_network(GPTConfig(**SHAPE, **changes))
    more = grown(net, 259)
    assert (more.config.vocab_size, net.config.vocab_size) == (259, 257)
    assert torch.equal(more(IDS)[..., :257], net(IDS))
    assert more(IDS).shape[-1] == 259
    for rows, old in ((more.token_embedding.weight, net.token_embedding.weight), (more.head.weight, net.head.weight)):
        assert len(rows) == more.config.padded_vocab_size
        torch.testing.assert_close(rows[257:], old[:257].mean(dim=0).expand(len(rows) - 257, -1))
    assert (more.head.weight is more.token_embedding.weight) == net.config.tie_embeddings
    assert torch.isfinite(more(torch.tensor([[1, 257, 258]]))).all()


def test_a_special_token_finds_its_row(make_network, tokenizer, tmp_path):
    net = make_network(GPTConfig(**SHAPE))
    larger = with_special_token(tokenizer, "<image>")
    with pytest.raises(ValueError, match="258 ids"):
        save_model(tmp_path / "model", net, larger)
    save_model(tmp_path / "model", grown(net, larger.vocab_size), larger)
    back, back_tokenizer = load_model(tmp_path / "model")
    assert back.config.vocab_size == back_tokenizer.vocab_size == 258
    back(IDS).sum().backward()
    assert back.token_embedding.weight.grad is not None


def test_growing_goes_one_way(make_network):
    net = make_network(GPTConfig(**SHAPE))
    assert grown(net, 257) is net
    with pytest.raises(ValueError, match="vocab_size=256 is less than the network's 257"):
        grown(net, 256)
