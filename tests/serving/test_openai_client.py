"""The official client, unmodified, against the real service."""

import openai
import pytest


@pytest.fixture(scope="module")
def client(service):
    return openai.OpenAI(base_url=f"{service.url}v1", api_key="none", max_retries=0)


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "tiny" and model.max_model_len == 4096
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="there is no model 'nobody'"):
        client.models.retrieve("nobody")


def test_completion(client):
    answer = client.completions.create(model="tiny", prompt="abc", max_tokens=5, temperature=0)
    assert answer.usage.prompt_tokens == 3 and answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == 8 and answer.choices[0].finish_reason == "length"
    again = client.completions.create(model="tiny", prompt=[97, 98, 99], max_tokens=5, temperature=0)
    assert again.choices[0].text == answer.choices[0].text


def test_stream_is_the_whole_in_pieces(client):
    asked = {"model": "tiny", "prompt": "to be", "max_tokens": 40, "seed": 5}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 40
    assert len(chunks) > 5


def test_chat(client):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=6, seed=1)
    assert answer.choices[0].message.role == "assistant" and answer.usage.completion_tokens == 6
    chunks = list(client.chat.completions.create(model="tiny", messages=messages, max_tokens=6, seed=1, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    plain = [{"role": "user", "content": "Hello"}]
    asked = {"model": "tiny", "max_tokens": 6, "seed": 1}
    texts = [client.chat.completions.create(messages=one, **asked).choices[0].message.content for one in (parts, plain)]
    assert texts[0] == texts[1]


def test_several_texts_of_several_prompts(client):
    answer = client.completions.create(model="tiny", prompt=["ab", "cd"], n=3, max_tokens=8, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3, 4, 5]
    assert len({choice.text for choice in answer.choices}) == 6
    alone = client.completions.create(model="tiny", prompt="cd", max_tokens=8, seed=4)
    assert alone.choices[0].text == answer.choices[4].text, "text i of a prompt draws from seed + i"
    streamed = [""] * 6
    for chunk in client.completions.create(model="tiny", prompt=["ab", "cd"], n=3, max_tokens=8, seed=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in answer.choices]


def test_stop_strings_end_a_text(client):
    asked = {"model": "tiny", "prompt": "hello", "max_tokens": 60, "temperature": 0}
    free = client.completions.create(**asked).choices[0].text
    stop = free[20:23]
    cut = client.completions.create(**asked, stop=[stop]).choices[0]
    assert cut.text == free[: free.index(stop)] and cut.finish_reason == "stop"
    streamed = "".join(one.choices[0].text for one in client.completions.create(**asked, stop=stop, stream=True))
    assert streamed == cut.text


def test_logprobs_of_completions(client):
    answer = client.completions.create(
        model="tiny", prompt="abcd", max_tokens=3, temperature=0, logprobs=2, echo=True
    ).choices[0]
    logprobs = answer.logprobs
    assert answer.text.startswith("abcd") and logprobs.tokens[:4] == ["a", "b", "c", "d"]
    assert logprobs.text_offset[:5] == [0, 1, 2, 3, 4] and len(logprobs.token_logprobs) == 7
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    for value, top in zip(logprobs.token_logprobs[4:], logprobs.top_logprobs[4:]):
        assert len(top) == 2 and value == max(top.values()), "greedy takes the likeliest"


def test_logprobs_of_chats(client):
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    content = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert len(content) == 4 and all(len(one.top_logprobs) == 3 for one in content)
    for one in content:
        assert one.logprob == one.top_logprobs[0].logprob and bytes(one.bytes)
    streamed = [
        one.logprob
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert streamed == [one.logprob for one in content]


def test_sampling_fields_do_what_they_say(client):
    def text(**more):
        asked = {"model": "tiny", "prompt": "once", "max_tokens": 24, "seed": 9, **more}
        return client.completions.create(**asked).choices[0].text

    greedy = text(temperature=0)
    assert text(top_p=1e-9) == greedy and text(extra_body={"top_k": 1}) == greedy
    assert text(extra_body={"min_p": 1.0}) == greedy
    assert text(temperature=0, logit_bias={"65": 100}) == "A" * 24
    assert text(temperature=0, extra_body={"repetition_penalty": 1.5}) != greedy
    assert text(temperature=0, frequency_penalty=2) != greedy
    assert text() == text() != text(seed=10)
    unseeded = {text(seed=None) for _ in range(3)}
    assert len(unseeded) == 3


def test_embeddings(client):
    asked = {"model": "tiny", "input": ["to be", "or not", "to be"]}
    plain = client.embeddings.create(**asked, encoding_format="float").data  # the client asks for base64 by itself
    vectors = [one.embedding for one in plain]
    assert len(vectors) == 3 and vectors[0] == vectors[2] != vectors[1] and len(vectors[0]) == 64
    assert sum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-4)
    packed = client.embeddings.create(**asked).data
    assert packed[1].embedding == pytest.approx(vectors[1], abs=1e-6)


MISTAKES = [
    ({"max_tokens": -1}, "max_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"logprobs": 21}, "logprobs"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"999": 1}}, "logit_bias"),
    ({"logit_bias": {"9": 101}}, "logit_bias"),
    ({"best_of": 4}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"prompt": "x" * 4097}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [256]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"seed": 1.5}, "seed"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"extra_body": {"top_k": "many"}}, "top_k"),
    ({"extra_body": {"min_tokens": 99}}, "min_tokens"),
    ({"extra_body": {"tempratur": 1}}, "tempratur"),
]


@pytest.mark.parametrize("fields, name", MISTAKES, ids=[f"{name}-{i}" for i, (_, name) in enumerate(MISTAKES)])
def test_a_mistake_is_a_400_that_names_the_field(client, fields, name):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tiny", "prompt": "a", "max_tokens": 4, **fields})
    error = caught.value
    assert error.param == name and name in error.message and error.type == "invalid_request_error"
    assert "Traceback" not in str(error)


def test_chat_mistakes(client):
    def refused(**fields):
        asked = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4, **fields}
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked)
        return caught.value.param

    assert refused(messages=[]) == "messages"
    assert refused(messages=[{"role": "nobody", "content": "a"}]) == "messages"
    assert refused(messages=[{"role": "user"}]) == "messages"
    picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    assert refused(messages=[{"role": "user", "content": picture}]) == "messages"
    assert refused(top_logprobs=2) == "top_logprobs"
    assert refused(tools=[{"type": "function", "function": {"name": "f"}}]) == "tools"
    assert refused(response_format={"type": "json_object"}) == "response_format"
    assert refused(max_tokens=4096) == "max_tokens"
    assert refused(messages=[{"role": "user", "content": "a" * 5000}]) == "messages"


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'"):
        client.completions.create(model="tinny", prompt="a")
    assert client.completions.create(model="tiny@v1", prompt="a", max_tokens=1).choices
    with pytest.raises(openai.NotFoundError, match="no version 'v9'"):
        client.completions.create(model="tiny@v9", prompt="a")
