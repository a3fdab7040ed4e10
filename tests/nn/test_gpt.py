import pytest
import torch

from lightning_gpt.nn import GPT, GPTConfig, KVCache
from lightning_gpt.parallel.recompute import recompute

SHAPE = {"vocab_size": 41, "block_size": 24, "n_layer": 3, "n_head": 4, "n_embd": 32}
VARIANTS = {
    "gpt2": GPTConfig(**SHAPE),
    "llama": GPTConfig(**SHAPE, n_kv_head=2, position="rotary", norm="rmsnorm", feed_forward="swiglu", bias=False),
    "modern": GPTConfig(
        **SHAPE,
        n_kv_head=1,
        position="rotary",
        norm="rmsnorm",
        norm_affine=False,
        qk_norm=True,
        feed_forward="relu2",
        bias=False,
        tie_embeddings=False,
        logit_softcap=15.0,
        vocab_multiple=16,
    ),
    "none": GPTConfig(**SHAPE, position="none", feed_forward="geglu"),
}


@pytest.fixture(params=VARIANTS)
def net(request):
    torch.manual_seed(0)
    return GPT(VARIANTS[request.param]).double().eval()


def ids(*shape):
    return torch.randint(41, shape, generator=torch.Generator().manual_seed(1))


def cache_for(net, rows):
    return KVCache(net.config, rows, dtype=torch.float64)


def test_logits_have_the_vocabulary_without_padding(net):
    assert net(ids(2, 7)).shape == (2, 7, 41)


def test_no_token_sees_a_later_one(net):
    x = ids(1, 12)
    changed = x.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 41
    one, two = net(x), net(changed)
    torch.testing.assert_close(one[:, :8], two[:, :8])
    assert not torch.allclose(one[:, 8:], two[:, 8:])


@pytest.mark.parametrize("cuts", [(1,) * 12, (12,), (5, 1, 1, 5), (4, 8)])
def test_cached_equals_full(net, cuts):
    x, cache = ids(2, 12), cache_for(net, 2)
    parts = [net(part, cache=cache) for part in x.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), net(x))


def test_ragged_rows_with_a_cache_equal_each_row_alone(net):
    lengths, steps = [3, 9, 6], 5
    rows = [ids(1, length + steps)[0] + row for row, length in enumerate(lengths)]
    rows = [row % 41 for row in rows]
    padded = torch.full((3, max(lengths)), 7)
    for row, length in enumerate(lengths):
        padded[row, :length] = rows[row][:length]
    cache = cache_for(net, 3)
    first = net(padded, cache=cache)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(first[row, :length], net(rows[row][None, :length])[0])
    for step in range(steps):
        positions = torch.tensor(lengths)[:, None] + step
        tokens = torch.stack([row[length + step] for row, length in zip(rows, lengths)])[:, None]
        logits = net(tokens, positions, cache)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(logits[row, 0], net(rows[row][None, : length + step + 1])[0, -1])


def test_selected_rows_go_on(net):
    x, cache = ids(4, 9), cache_for(net, 4)
    net(x[:, :8], cache=cache)
    cache.select(torch.tensor([3, 1]))
    torch.testing.assert_close(net(x[[3, 1], 8:], cache=cache), net(x[[3, 1]])[:, 8:])


@pytest.mark.parametrize("name", ["llama", "modern", "none"])
def test_documents_equal_separate_forwards(name):
    torch.manual_seed(0)
    net = GPT(VARIANTS[name]).double().eval()
    x = ids(2, 12)
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 2 + [1] * 4 + [2] * 6])
    packed = net(x, document_ids=documents)
    for row, cuts in ((0, (5, 7)), (1, (2, 4, 6))):
        # rotary scores depend on distance alone, so a document's place in the row does not matter
        alone = torch.cat([net(part[None])[0] for part in x[row].split(cuts)])
        torch.testing.assert_close(packed[row], alone)


def test_loss_equals_cross_entropy_of_the_logits(net):
    x, targets = ids(2, 12), ids(2, 12).roll(1)
    targets[0, :4] = -100
    total, count = net.loss(x, targets)
    expected = torch.nn.functional.cross_entropy(net(x).flatten(0, 1), targets.flatten(), reduction="sum")
    assert count.item() == 20
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients(every, dropout):
    import dataclasses

    torch.manual_seed(0)
    net = GPT(dataclasses.replace(VARIANTS["llama"], dropout=dropout)).train()
    x = ids(2, 12)
    gradients = []
    for setting in (0, every):
        recompute(net, setting)
        net.zero_grad()
        torch.manual_seed(5)
        net.loss(x, x)[0].backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    for one, two in zip(*gradients):
        assert torch.equal(one, two)


def test_padded_rows_never_get_a_gradient():
    torch.manual_seed(0)
    net = GPT(VARIANTS["modern"])
    x = ids(2, 12)
    net.loss(x, x)[0].backward()
    assert net.head.weight.shape[0] == 48
    assert (net.head.weight.grad[41:] == 0).all()
    assert (net.token_embedding.weight.grad[41:] == 0).all()


def test_too_long_is_refused(net):
    with pytest.raises(ValueError, match="25 tokens exceed block_size=24"):
        net(ids(1, 25))
    cache = KVCache(net.config, 1, size=6, dtype=torch.float64)
    net(ids(1, 6), cache=cache)
    with pytest.raises(ValueError, match="beyond the cache of 6"):
        net(ids(1, 1), cache=cache)


def test_dropout_acts_only_in_training():
    torch.manual_seed(0)
    net = GPT(GPTConfig(**SHAPE, dropout=0.5))
    x = ids(1, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_bfloat16_network_is_near():
    torch.manual_seed(0)
    net = GPT(VARIANTS["llama"]).eval()
    x = ids(1, 12)
    exact = net(x)
    assert (net.bfloat16()(x).float() - exact).abs().max() < 0.02 * exact.abs().max() + 0.01


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_cache_and_network_of_different_types(stored, computed):
    torch.manual_seed(0)
    net = GPT(VARIANTS["llama"]).eval().to(computed)
    x, cache = ids(2, 12), KVCache(net.config, 2, dtype=stored)
    with torch.no_grad():
        parts = [net(part, cache=cache) for part in x.split((4, 7, 1), dim=1)]
        exact = net.float()(x)
    assert parts[0].dtype == computed
    assert (torch.cat(parts, dim=1).float() - exact).abs().max() < 0.02 * exact.abs().max() + 0.01


ROTARY = {"position": "rotary", "norm": "rmsnorm", "qk_norm": True}


@pytest.mark.parametrize(
    "parts", [{}, ROTARY | {"feed_forward": "relu2"}, ROTARY | {"feed_forward": "swiglu"}], ids=str
)
def test_the_loss_is_one_graph_to_the_compiler(parts):
    torch.manual_seed(0)
    net = GPT(GPTConfig(vocab_size=41, block_size=24, n_layer=2, n_head=4, n_embd=32, **parts))
    x = torch.randint(41, (2, 25))
    compiled = torch.compile(net.loss, fullgraph=True, backend="eager")  # a break raises
    torch.testing.assert_close(compiled(x[:, :-1], x[:, 1:]), net.loss(x[:, :-1], x[:, 1:]))
