import dataclasses
import json
import os

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from lightning_gpt.hub.llava import is_llava, llava_obstacles, load_llava, save_llava
from lightning_gpt.inference import SamplingConfig, generate
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe_config import MoEConfig
from lightning_gpt.nn.vision_language import Projector, VisionLanguageModel, expand_image_tokens
from lightning_gpt.nn.vision_tower import build_tower
from lightning_gpt.text.byte import byte_tokenizer
from lightning_gpt.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
pytest.importorskip("open_clip")
IMAGE = 257
SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    "llama": transformers.LlamaConfig(**SHAPE, vocab_size=260, max_position_embeddings=64, num_key_value_heads=2),
    "mistral": transformers.MistralConfig(
        **SHAPE, vocab_size=260, max_position_embeddings=64, num_key_value_heads=2, sliding_window=7
    ),
    "qwen2": transformers.Qwen2Config(
        **SHAPE, vocab_size=260, max_position_embeddings=64, num_key_value_heads=4, tie_word_embeddings=True
    ),
}
VISION = transformers.CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=72,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=28,
    patch_size=14,
    projection_dim=16,
)
GELU = transformers.CLIPVisionConfig(**{**VISION.to_dict(), "hidden_act": "gelu", "layer_norm_eps": 1e-3})
VIT = {"image_size": 28, "patch_size": 14, "width": 32, "head_width": 8, "layers": 3}
OUR_LLAMA = GPTConfig(
    **{"vocab_size": 260, "block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 48, "n_kv_head": 2},
    **{"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "bias": False, "tie_embeddings": False},
)
PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
IDS = [
    expand_image_tokens([1, 5, IMAGE, 7, 8, 9], IMAGE, 4),
    expand_image_tokens([1, IMAGE, 3, 4, 5, 6], IMAGE, 4),
]


@pytest.fixture(scope="module")
def tokenizer():
    backend = tokenizers.Tokenizer.from_str(byte_tokenizer(end_of_text=True).to_json())
    backend.add_special_tokens(["<image>"])
    made = Tokenizer(backend)
    assert made.special_tokens["<image>"] == IMAGE
    return made


def scramble(module):
    """Random enough that every part counts and greedy text does not repeat one token."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return module.eval()


def theirs(text="llama", vision=VISION, layer=-2, **options):
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=TEXT[text],
        image_token_index=IMAGE,
        image_seq_length=4,
        vision_feature_layer=layer,
        tie_word_embeddings=TEXT[text].tie_word_embeddings,
        **options,
    )
    torch.manual_seed(0)
    return scramble(transformers.LlavaForConditionalGeneration(config))


def ours(tower, config=OUR_LLAMA, kind="mlp"):
    torch.manual_seed(0)
    return scramble(VisionLanguageModel(GPT(config), tower, Projector(tower.width, config.n_embd, kind), IMAGE))


@torch.no_grad()
def their_logits(peer):
    return peer(input_ids=torch.tensor(IDS), pixel_values=PIXELS).logits


@torch.no_grad()
def assert_same_function(model, peer):
    expected = their_logits(peer)
    assert expected.std() > 0.3
    assert (model(torch.tensor(IDS), PIXELS) - expected).abs().max() < 1e-4
    without = torch.tensor([[1, 2, 3]])
    assert (model(without) - peer(input_ids=without).logits).abs().max() < 1e-4


def same(one, two):
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        if not name.endswith("visual.proj"):  # no part of LLaVA
            assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("text", "vision", "layer"),
    [("llama", VISION, -2), ("llama", GELU, -1), ("mistral", VISION, -1), ("qwen2", VISION, 1)],
)
def test_transformers_there_and_back(text, vision, layer, tmp_path):
    peer = theirs(text, vision, layer)
    peer.save_pretrained(tmp_path / "theirs")
    assert is_llava(tmp_path / "theirs")
    model, tokenizer = load_llava(tmp_path / "theirs")
    assert tokenizer is None
    assert model.tower.layer == (layer if layer < 0 else -3)
    assert (model.tower.tokens, model.image_token_id, model.training) == (4, IMAGE, False)
    assert_same_function(model, peer)

    assert save_llava(tmp_path / "again", model, None) == "llava"
    again, report = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(their_logits(again.eval()), their_logits(peer))
    same(model, load_llava(tmp_path / "again")[0])


def test_every_spelling_of_the_names_is_read(tmp_path):
    peer = theirs()
    peer.save_pretrained(tmp_path / "one")
    model, _ = load_llava(tmp_path / "one")
    config = json.loads((tmp_path / "one/config.json").read_text())
    config["image_token_id"] = config.pop("image_token_index")
    state = {name: tensor.clone() for name, tensor in peer.state_dict().items()}  # model.language_model., ...
    oldest = {}
    for name, tensor in load_file(tmp_path / "one/model.safetensors").items():  # language_model.model., ...
        oldest[name.replace("vision_tower.", "vision_tower.vision_model.")] = tensor
    oldest["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    for name, tensors in (("new", state), ("old", oldest)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file(tensors, tmp_path / name / "model.safetensors")
        same(model, load_llava(tmp_path / name)[0])


def test_greedy_text_equals_that_of_transformers(tmp_path):
    peer = theirs()
    peer.save_pretrained(tmp_path)
    model, _ = load_llava(tmp_path)
    prompts = [IDS[0], IDS[1], [5, 6, 7]]
    embeds = model.prompt_embeds(prompts, [PIXELS[:1], PIXELS[1:], None])
    made = generate(model.net, prompts, 16, SamplingConfig(temperature=0), prompt_embeds=embeds)
    for row, prompt in enumerate(prompts):
        pixels = {"pixel_values": PIXELS[row : row + 1]} if row < 2 else {}
        ids = torch.tensor([prompt])
        expected = peer.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **pixels,
            **{"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "eos_token_id": None},
        )
        assert made[row] == expected[0, len(prompt) :].tolist()
    assert len(set(made[0])) > 3
    other = model.prompt_embeds(prompts, [PIXELS[1:], PIXELS[:1], None])
    assert generate(model.net, prompts, 16, SamplingConfig(temperature=0), prompt_embeds=other)[0] != made[0]


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_transformers_reads_what_we_trained(quick_gelu, tokenizer, tmp_path):
    from PIL import Image

    tower = build_tower(VIT, 16, -2, quick_gelu, {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)})
    model = ours(tower)
    assert not llava_obstacles(model)
    assert save_llava(tmp_path / "model", model, tokenizer, {"temperature": 0.5}) == "llava"
    assert_same_function(model, transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "model").eval())
    back, back_tokenizer = load_llava(tmp_path / "model")
    assert back.net.config == model.net.config
    assert back.tower.preprocess == tower.preprocess
    assert back_tokenizer.fingerprint == tokenizer.fingerprint
    same(model, back)

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "model")
    picture = Image.new("RGB", (40, 50), (200, 100, 0))
    made = processor(images=picture, text="a<image>b", return_tensors="pt")
    assert made["input_ids"][0].tolist() == expand_image_tokens([97, IMAGE, 98], IMAGE, 4)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pixels = image_transform_v2(PreprocessCfg(**back.tower.preprocess), is_train=False)(picture)
    torch.testing.assert_close(made["pixel_values"][0], pixels, atol=1e-5, rtol=0)
    processor.save_pretrained(tmp_path / "model")  # moves what is said of pictures to another file
    (tmp_path / "model/preprocessor_config.json").unlink(missing_ok=True)
    assert load_llava(tmp_path / "model")[0].tower.preprocess == tower.preprocess


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"bias": True, "vocab_multiple": 64, "tie_embeddings": True}),
        ("qwen3", {"qk_norm": True, "qk_norm_affine": True}),
        ("mixtral", {"moe": MoEConfig(experts=4)}),
    ],
)
def test_every_language_model_of_the_kind_has_its_place(kind, changes, tmp_path):
    model = ours(build_tower(VIT, 16), dataclasses.replace(OUR_LLAMA, **changes))
    save_llava(tmp_path, model, None)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["model_type"] == kind
    assert_same_function(model, transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval())


CNN = {"timm_model_name": "tf_efficientnet_lite0", "image_size": 32, "timm_proj": "none"}
OWN = {
    "efficientnet": (CNN, OUR_LLAMA, "mlp", ["vision_cfg.timm_model_name=tf_efficientnet_lite0"]),
    "one matrix": (VIT, OUR_LLAMA, "linear", ["projector=linear"]),
    "gpt2": (VIT, GPTConfig(vocab_size=260, block_size=64, n_layer=2, n_head=2, n_embd=32), "mlp", None),
    "softcap": (VIT, GPTConfig(260, 64, 2, 2, 32, logit_softcap=9.0, vocab_multiple=64), "mlp", None),
    "residual network": ({"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}, OUR_LLAMA, "mlp", None),
    "no first norm": ({**VIT, "no_ln_pre": True}, OUR_LLAMA, "mlp", ["vision_cfg.no_ln_pre=True"]),
}


@pytest.mark.parametrize("name", OWN)
def test_own_format(name, tokenizer, tmp_path):
    cfg, config, kind, reasons = OWN[name]
    preprocess = {"mean": (0.1, 0.2, 0.3), "resize_mode": "squash", "interpolation": "bilinear"}
    model = ours(build_tower(cfg, 16, -2, preprocess=preprocess), config, kind)
    assert reasons is None or llava_obstacles(model) == reasons
    assert llava_obstacles(model)
    assert save_llava(tmp_path / "model", model, tokenizer) == "lightning_gpt_llava"
    assert is_llava(tmp_path / "model")
    back, _ = load_llava(tmp_path / "model")
    assert (back.net.config, back.image_token_id, back.projector.kind) == (config, IMAGE, kind)
    assert back.tower.preprocess == {
        **model.tower.preprocess,
        "mean": [0.1, 0.2, 0.3],
        "std": back.tower.preprocess["std"],
    }
    same(model, back)
    pixels = torch.randn(1, 3, *model.tower.image_size)
    ids = torch.tensor([expand_image_tokens([1, IMAGE, 2], IMAGE, model.tower.tokens)])
    assert torch.equal(model(ids, pixels), back(ids, pixels))


def test_types_and_frozen_parts(tokenizer, tmp_path):
    model = ours(build_tower(CNN, 16))
    save_llava(tmp_path / "model", model, tokenizer, dtype=torch.bfloat16)
    stored, _ = load_llava(tmp_path / "model")
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in stored.tower.parameters())
    assert all(p.requires_grad for part in (stored.net, stored.projector) for p in part.parameters())
    wide, _ = load_llava(tmp_path / "model", torch.float32, trainable_tower=True)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert any(p.requires_grad for p in wide.tower.parameters())
    assert wide.tower.visual.trunk.bn1.num_batches_tracked.dtype == torch.int64


def edited(path, **changes):
    config = json.loads((path / "config.json").read_text())
    for name, value in changes.items():
        part, _, field = name.partition("__")
        if field:
            config[part][field] = value
        else:
            config[part] = value
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full' is not supported"),
        ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer=\[-2, -1\]"),
        ({"vision_feature_layer": -4}, "vision_feature_layer=-4 is none of 3 layers"),
        ({"vision_feature_layer": 0}, "vision_feature_layer=0 is none of 3 layers"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
        ({"text_config__model_type": "gpt2"}, "text_config.model_type='gpt2'"),
        ({"vision_config__model_type": "siglip_vision_model"}, "vision_config.model_type='siglip_vision_model'"),
        ({"vision_config__hidden_act": "silu"}, "vision_config.hidden_act='silu'"),
        ({"vision_config__num_hidden_layers": 2}, "unexpected .* image tower: encoder.layers.2"),
        ({"vision_config__intermediate_size": 80}, "mlp.fc1.weight has shape"),
        ({"quantization_config": {"bits": 4}}, "quantized weights"),
        ({"image_token_index": 999}, "image_token_id=999 is outside"),
        ({"model_type": "llava_next"}, "model_type='llava_next'"),
    ],
)
def test_what_is_not_supported_is_named(changes, message, tmp_path):
    theirs().save_pretrained(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_llava(tmp_path)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"size": {"shortest_edge": 32}}, "before a crop"),
        ({"crop_size": {"height": 20, "width": 20}}, "for a tower of"),
        ({"resample": 1}, "resample=1"),
        ({"rescale_factor": 1.0}, "rescale_factor=1.0"),
        ({"do_resize": False}, "do_resize=false"),
    ],
)
def test_how_pictures_are_prepared_must_be_known(processor, message, tokenizer, tmp_path):
    save_llava(tmp_path / "model", ours(build_tower(VIT, 16)), tokenizer)
    path = tmp_path / "model/preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | processor))
    with pytest.raises(ValueError, match=f"preprocessor_config.json: .*{message}"):
        load_llava(tmp_path / "model")


def test_older_spellings_of_sizes(tokenizer, tmp_path):
    model = ours(build_tower(VIT, 16))
    save_llava(tmp_path / "model", model, tokenizer)
    path = tmp_path / "model/preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": 28, "crop_size": 28}))
    assert load_llava(tmp_path / "model")[0].tower.preprocess == model.tower.preprocess


def test_damaged_directories(tokenizer, tmp_path):
    model = ours(build_tower(VIT, 16), kind="linear")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_llava(tmp_path)
    save_llava(tmp_path / "model", model, tokenizer)
    tensors = load_file(tmp_path / "model/model.safetensors")
    for name, part in (("projector.0.bias", "projector"), ("tower.visual.conv1.weight", "image tower")):
        fewer = {key: value for key, value in tensors.items() if key != name}
        save_file(fewer, tmp_path / "model/model.safetensors")
        with pytest.raises(ValueError, match=f"its {part} is another .*{name.split('.', 2)[-1]}"):
            load_llava(tmp_path / "model")
    edited(tmp_path / "model", model_type="lightning_gpt_llava")
    config = json.loads((tmp_path / "model/config.json").read_text())
    del config["preprocess"]
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks 'preprocess'"):
        load_llava(tmp_path / "model")


def test_a_failed_save_leaves_nothing_and_refuses_strangers(tokenizer, tmp_path):
    model = ours(build_tower(VIT, 16))
    plain = byte_tokenizer(end_of_text=True)
    with pytest.raises(ValueError, match="image_token_id=257 is no special token"):
        save_llava(tmp_path / "model", model, plain)
    model.tower.config = None
    with pytest.raises(ValueError, match="does not know its vision_cfg"):
        save_llava(tmp_path / "model", model, tokenizer)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").write_text("hello")
    with pytest.raises(ValueError, match="is no model directory"):
        save_llava(tmp_path / "letters", ours(build_tower(VIT, 16)), tokenizer)
    assert os.listdir(tmp_path) == ["letters"]
    assert not is_llava(tmp_path / "letters")
