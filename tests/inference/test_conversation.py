import pytest
import torch

from lightning_gpt.hub.llava_opening import open_llava
from lightning_gpt.inference import SamplingConfig, generate
from lightning_gpt.inference.conversation import Conversation
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.vision_language import expand_image_tokens
from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.chat import ChatTemplate

IMAGE, END = 257, 256
PIXELS = torch.randn(2, 1, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def said(conversation, text):
    return "".join(conversation.ask(text))


@pytest.fixture
def seeing(tiny_llava):
    model, tokenizer = open_llava(tiny_llava)
    return model, ChatTemplate(tokenizer, None, "<image>")


@pytest.fixture
def talking():
    """A network that has no taste for the end of a text, and its template."""
    torch.manual_seed(0)
    net = GPT(GPTConfig(vocab_size=257, block_size=96, n_layer=2, n_head=2, n_embd=32, init_std=0.2)).eval()
    return net, ChatTemplate(byte_tokenizer(end_of_text=True))


def test_answers_are_those_of_transformers(seeing, tiny_llava):
    transformers = pytest.importorskip("transformers")
    model, template = seeing
    peer = transformers.LlavaForConditionalGeneration.from_pretrained(tiny_llava).eval()
    tokenizer = template.tokenizer
    conversation = Conversation(model.net, template, model, max_new_tokens=6)
    written, shown = [], []
    for number, question in enumerate(("What?", "And?")):
        conversation.show(PIXELS[number])
        shown.append(PIXELS[number])
        written += [*b"User: ", IMAGE, *f"\n{question}\nAssistant: ".encode()]
        ids = torch.tensor([expand_image_tokens(written, IMAGE, 4)])
        made = peer.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.cat(shown),
            **{"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": END},
            suppress_tokens=[IMAGE],
        )[0, ids.shape[1] :].tolist()
        answer = tokenizer.decode(made).removesuffix("<|endoftext|>")
        assert said(conversation, question) == answer
        assert answer
        written += [*tokenizer.encode(answer), END, *b"\n"]
    other = Conversation(model.net, template, model, max_new_tokens=6)
    other.show(PIXELS[1])
    assert said(other, "What?") != conversation.turns[1].content
    assert [turn.pictures for turn in conversation.turns] == [1, 0, 1, 0]


def test_the_token_for_a_picture_may_be_written_but_not_forged(seeing):
    model, template = seeing
    plain = Conversation(model.net, template, model, max_new_tokens=6)
    with pytest.raises(ValueError, match="has 1 <image>, but 0 pictures were shown"):
        said(plain, "<image>\nWhat?")
    assert plain.turns == []
    plain.show(PIXELS[0])
    answer = said(plain, "<image>\nWhat?")
    again = Conversation(model.net, template, model, max_new_tokens=6)
    again.show(PIXELS[0])
    assert said(again, "What?") == answer
    blind = Conversation(model.net, template, model, max_new_tokens=6)
    assert said(blind, "What?") != answer
    with pytest.raises(ValueError, match="cannot be shown pictures"):
        Conversation(model.net, template).show(PIXELS[0])


def test_history_is_kept_until_it_is_reset(talking):
    net, template = talking
    conversation = Conversation(net, template, system="Be brief.", max_new_tokens=4)
    first = said(conversation, "a")
    second = said(conversation, "b")
    messages = [("system", "Be brief."), ("user", "a"), ("assistant", first), ("user", "b")]
    ids = template.prompt_ids([{"role": role, "content": content} for role, content in messages])
    (made,) = generate(net, [ids], 4, SamplingConfig(temperature=0), eos_ids=[END])
    assert second == template.tokenizer.decode([token for token in made if token != END])
    conversation.reset()
    assert conversation.turns == []
    assert said(conversation, "a") == first
    assert said(conversation, "a") != first


def test_what_was_said_is_not_read_again(talking, seeing):
    net, template = talking
    conversation = Conversation(net, template, max_new_tokens=4)
    for question in ("what is this?", "and this?"):
        said(conversation, question)
    stats = conversation._engine.stats()
    begun = len(template.prompt_ids([{"role": "user", "content": "what is this?"}]))
    assert stats.shared_tokens == begun // 16 * 16 > 0
    model, template = seeing
    conversation = Conversation(model.net, template, model, max_new_tokens=2)
    conversation.show(PIXELS[0])
    for question in ("what is this?", "and this?"):
        said(conversation, question)
    assert conversation._engine.stats().shared_tokens > 0
    same, fresh = (Conversation(model.net, template, model, max_new_tokens=2) for _ in range(2))
    same._engine = conversation._engine
    for other in (same, fresh):
        other.show(PIXELS[1])
    assert said(same, "what is this?") == said(fresh, "what is this?")


def test_the_oldest_turns_make_room(talking):
    net, template = talking
    conversation = Conversation(net, template, max_new_tokens=8)
    forgotten = []
    for number in range(6):
        said(conversation, f"question {number}")
        forgotten.append(conversation.forgotten)
        assert conversation.turns[-2].content == f"question {number}"
        assert conversation.turns[-1].content
    assert forgotten[0] == 0
    assert set(forgotten[3:]) <= {1, 2}
    before = list(conversation.turns)
    with pytest.raises(ValueError, match=r"takes 1\d\d tokens, of the model's 96 at most 89 leave room"):
        said(conversation, "x" * 100)
    assert conversation.turns == before


def test_pictures_outlive_the_words_about_them(seeing):
    model, template = seeing
    conversation = Conversation(model.net, template, model, max_new_tokens=8)
    conversation.show(PIXELS[0])
    for number in range(6):
        said(conversation, f"question {number}")
    assert conversation.forgotten
    assert [turn.pictures for turn in conversation.turns if turn.pictures] == [1]
    assert conversation.turns[0].pictures == 1
    conversation.reset()
    said(conversation, "question 5")
    assert not any(turn.pictures for turn in conversation.turns)


def test_what_was_said_stays_when_the_reader_stops(talking):
    net, template = talking
    conversation = Conversation(net, template, max_new_tokens=12)
    pieces = conversation.ask("a")
    heard = next(pieces)
    pieces.close()
    assert conversation.turns[-1].content == heard
    assert said(conversation, "b")
    whole = Conversation(net, template, max_new_tokens=12)
    assert said(whole, "a").startswith(heard)
    assert whole.turns[-1].content != heard


def test_answers_end_where_they_are_told_to(talking):
    net, template = talking
    answer = said(Conversation(net, template, max_new_tokens=12), "a")
    cut = said(Conversation(net, template, max_new_tokens=12, stop=[answer[3:5]]), "a")
    assert cut == answer[: answer.index(answer[3:5])]
    hot = {"max_new_tokens": 12, "sampling": SamplingConfig(temperature=2)}
    drawn = [said(Conversation(net, template, seed=seed, **hot), "a") for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        Conversation(net, template, max_new_tokens=0)
