import pytest
import torch

from lightning_gpt.inference import Generation, SamplingConfig, generate, row_generators

GREEDY = SamplingConfig(temperature=0)
PROMPTS = [[5], [7, 8, 9, 10, 11], [200, 3, 100], [1, 2, 3, 4, 5, 6, 7, 8]]


def uncached(net, prompt, new, eos=(), forget=False):
    """Greedy continuation by a full pass for every token, one row alone: the readable twin."""
    window, made = list(prompt), []
    for _ in range(new):
        if forget and len(window) > net.config.block_size:
            window = window[-(net.config.block_size // 2) :]
        with torch.no_grad():
            token = int(net(torch.tensor([window]))[0, -1].argmax())
        made.append(token)
        window.append(token)
        if token in eos:
            break
    return made


def test_cached_equals_uncached(net):
    expected = uncached(net, PROMPTS[1], 20)
    assert generate(net, [PROMPTS[1]], 20, GREEDY) == [expected]
    assert len(set(expected)) > 3


def test_a_ragged_batch_equals_each_row_alone(net):
    expected = [uncached(net, prompt, 16) for prompt in PROMPTS]
    assert generate(net, PROMPTS, 16, GREEDY) == expected


def test_rows_that_end_leave_and_the_others_go_on(net):
    alone = [uncached(net, prompt, 16) for prompt in PROMPTS]
    eos = {alone[3][2], alone[0][7]}  # the longest row ends early
    expected = [uncached(net, prompt, 16, eos) for prompt in PROMPTS]
    assert generate(net, PROMPTS, 16, GREEDY, eos_ids=eos) == expected
    assert len({len(row) for row in expected}) > 1


def test_sampled_rows_do_not_depend_on_the_batch(net):
    config = SamplingConfig(temperature=1.3, top_k=30, repetition_penalty=1.2)
    together = generate(net, PROMPTS, 12, config, generator=row_generators(3, 4))
    for row, prompt in enumerate(PROMPTS):
        assert generate(net, [prompt], 12, config, generator=row_generators(3 + row, 1)) == [together[row]]


def test_sliding_equals_the_uncached_window(net):
    prompts = [*PROMPTS, list(range(24)), list(range(100, 140))]
    starts = [prompt if len(prompt) <= 24 else prompt[-12:] for prompt in prompts]
    expected = [uncached(net, start, 60, forget=True) for start in starts]
    assert generate(net, prompts, 60, GREEDY, overflow="slide") == expected


def test_the_whole_block_can_be_filled_and_no_more(net):
    prompt = list(range(20))
    assert generate(net, [prompt], 5, GREEDY) == [uncached(net, prompt, 5)]
    with pytest.raises(ValueError, match="exceed block_size=24: ask for at most 5"):
        generate(net, [prompt], 6, GREEDY)


def test_repetition_penalty_forbids_what_was_seen(net):
    config = SamplingConfig(temperature=0, repetition_penalty=1e9)
    (row,) = generate(net, [[1, 2, 3]], 20, config)
    assert len(set(row)) == 20
    assert not set(row) & {1, 2, 3}


def test_ids_beyond_the_tokenizer_are_never_drawn(net):
    config = SamplingConfig(temperature=50.0)
    rows = generate(net, PROMPTS, 16, config, generator=torch.Generator().manual_seed(0), vocab_size=10)
    assert max(map(max, rows)) < 10


def test_stopping_a_row_from_outside(net):
    steps = Generation(net, PROMPTS, 10, GREEDY)
    counts = [0] * 4
    for step in steps:
        for row, _ in step:
            counts[row] += 1
        if counts[2] == 4:
            steps.stop(2)
    assert counts == [10, 10, 4, 10]


def test_embeddings_in_place_of_ids_change_nothing_when_they_are_the_same(net):
    expected = generate(net, PROMPTS, 12, GREEDY)
    table = net.token_embedding.weight.detach()
    embeds = [table[prompt] for prompt in PROMPTS]
    others = [[0] * len(prompt) for prompt in PROMPTS]
    assert generate(net, others, 12, GREEDY, prompt_embeds=embeds) == expected
    mixed = [others[0], PROMPTS[1], others[2], PROMPTS[3]]
    assert generate(net, mixed, 12, GREEDY, prompt_embeds=[embeds[0], None, embeds[2], None]) == expected
    assert generate(net, mixed, 12, GREEDY) != expected


def test_embeddings_must_belong_to_their_prompts(net):
    embeds = [torch.zeros(len(prompt), net.config.n_embd) for prompt in PROMPTS]
    with pytest.raises(ValueError, match="overflow=slide reads a window again by its ids"):
        generate(net, PROMPTS, 12, GREEDY, overflow="slide", prompt_embeds=embeds)
    with pytest.raises(ValueError, match="3 prompt_embeds for 4 prompts"):
        generate(net, PROMPTS, 12, GREEDY, prompt_embeds=embeds[:3])
    with pytest.raises(ValueError, match=r"of row 1 have shape \(1, 32\), its prompt asks for \(5, 32\)"):
        generate(net, PROMPTS, 12, GREEDY, prompt_embeds=[embeds[0], embeds[0], None, None])


def test_nothing_to_do(net):
    assert generate(net, [], 5) == []
    assert generate(net, [[1]], 0) == [[]]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1, 257]], {}, "outside the vocabulary of 257"),
        ([[-1]], {}, "outside the vocabulary"),
        ([[1]], {"overflow": "wrap"}, "overflow='wrap'"),
    ],
)
def test_refusals(net, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        generate(net, prompts, 3, **options)


def test_greedy_equals_transformers(net, tmp_path):
    transformers = pytest.importorskip("transformers")
    from lightning_gpt.hub import save_model

    save_model(tmp_path, net.float(), None)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    x = torch.tensor([PROMPTS[1]])
    expected = peer.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=18, do_sample=False, pad_token_id=0)
    assert generate(net, [PROMPTS[1]], 18, GREEDY) == [expected[0, 5:].tolist()]


@pytest.mark.parametrize(
    "config", [SamplingConfig(temperature=0), SamplingConfig(temperature=3, repetition_penalty=1.5)]
)
def test_banned_tokens_are_never_drawn(net, config):
    def rows(banned=()):
        generator = torch.Generator().manual_seed(0)
        return generate(net, PROMPTS, 12, config, generator=generator, vocab_size=60, banned_ids=banned)

    free = rows()
    banned = sorted({token for row in free for token in row})[::2]
    kept = rows(banned)
    assert not set(banned) & {token for row in kept for token in row}
    assert max(token for row in kept for token in row) < 60
    assert rows([59]) == free or any(59 in row for row in free)
    with pytest.raises(ValueError, match="banned_ids has 999, which is outside the vocabulary of 257"):
        rows([999])
