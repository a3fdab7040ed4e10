import torch

from lightning_gpt.inference import SamplingConfig, generate, generate_text
from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.char import char_tokenizer
from lightning_gpt.text.prompts import prompt_ids
from lightning_gpt.text.roles import Roles
from lightning_gpt.text.tokenizer import Tokenizer

TOKENIZER = byte_tokenizer(end_of_text=True)
HOT = SamplingConfig(temperature=2.0)


def texts(net, prompts, **options):
    out, finish = [""] * len(prompts), [None] * len(prompts)
    for piece in generate_text(net, TOKENIZER, prompts, **({"max_new_tokens": 40, "sampling": HOT} | options)):
        assert finish[piece.row] is None
        out[piece.row] += piece.text
        finish[piece.row] = piece.finish
    return out, finish


def test_a_batch_of_texts_equals_each_alone(net):
    prompts = ["", "To be", "é"]
    out, finish = texts(net, prompts, seed=5)
    for row, prompt in enumerate(prompts):
        assert texts(net, [prompt], seed=5 + row) == ([out[row]], [finish[row]])
    assert texts(net, prompts, seed=6)[0] != out


def test_stop_strings_end_a_row_and_stay_out(net):
    (whole,), _ = texts(net, ["To be"], seed=1)
    place = len(whole) // 2
    stop = whole[place : place + 2]
    (cut,), (finish,) = texts(net, ["To be"], seed=1, stop=[stop])
    assert finish == "stop"
    assert cut == whole[: whole.index(stop)]


def test_end_of_text_ends_a_row_and_is_not_written(net):
    with torch.no_grad():
        net.head.weight[TOKENIZER.eos_id] *= 1.5
    seen = {}
    for seed in range(30):
        (text,), (finish,) = texts(net, ["To be"], seed=seed)
        seen[finish] = text
        assert "<|endoftext|>" not in text
    assert {"eos", "length"} <= seen.keys()


def test_every_token_that_a_model_ends_with_ends_a_row(net):
    options = {"max_new_tokens": 20, "sampling": SamplingConfig(temperature=0)}
    (ids,) = generate(net, [TOKENIZER.encode("To be")], 20, options["sampling"])
    last = Tokenizer.from_json(TOKENIZER.to_json(), Roles(end_ids=(ids[3],)))
    pieces = list(generate_text(net, last, ["To be"], **options))
    assert pieces[-1].finish == "eos"
    assert pieces[-1].tokens == ids.index(ids[3]) + 1


def test_prompts_start_as_in_training():
    assert prompt_ids(TOKENIZER, "", 257) == [TOKENIZER.eos_id]
    assert prompt_ids(TOKENIZER, "a", 257) == [97]
    assert prompt_ids(char_tokenizer("ab\n"), "", 3) == [0]
    assert prompt_ids(char_tokenizer("ab"), "", 2) == [0]


def test_a_template_with_a_first_token_is_followed():
    import tokenizers
    from tokenizers import processors

    backend = tokenizers.Tokenizer.from_str(byte_tokenizer().to_json())
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer = Tokenizer(backend)
    assert prompt_ids(tokenizer, "a", 257) == [256, 97]
    assert prompt_ids(tokenizer, "", 257) == [256]


def test_prompts_may_be_ids_with_embeddings(net):
    prompts = ["To be", "or"]
    ids = [TOKENIZER.encode(prompt) for prompt in prompts]
    expected = texts(net, prompts, seed=3, max_new_tokens=12)
    assert texts(net, ids, seed=3, max_new_tokens=12) == expected
    embeds = [net.token_embedding.weight.detach()[row] for row in ids]
    blank = [[0] * len(row) for row in ids]
    options = {"seed": 3, "max_new_tokens": 12, "overflow": "refuse", "prompt_embeds": embeds}
    assert texts(net, blank, **options) == expected


def test_other_tokens_may_end_a_row_or_be_kept_out(net):
    greedy = SamplingConfig(temperature=0)
    (ids,) = generate(net, [TOKENIZER.encode("To be")], 20, greedy)
    (text,), (finish,) = texts(net, ["To be"], sampling=greedy, max_new_tokens=20, end_ids={ids[3]})
    assert finish == "eos"
    assert text == TOKENIZER.decode(ids[: ids.index(ids[3])])
    (other,), _ = texts(net, ["To be"], sampling=greedy, max_new_tokens=20, banned_ids=[ids[3]])
    assert other != TOKENIZER.decode(ids)
