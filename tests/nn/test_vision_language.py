import pytest
import torch

from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.vision_language import Projector, VisionLanguageModel, expand_image_tokens
from lightning_gpt.nn.vision_tower import VisionTower, build_tower

pytest.importorskip("open_clip")
IMAGE = 60
VIT = {"image_size": 28, "patch_size": 14, "width": 32, "head_width": 8, "layers": 3}
CNN = {"timm_model_name": "tf_efficientnet_lite0", "image_size": 64}
TEXT = GPTConfig(vocab_size=61, block_size=32, n_layer=2, n_head=2, n_embd=24, embedding_multiplier=1.5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    tower = build_tower(VIT, embed_dim=16, layer=-2)
    return VisionLanguageModel(GPT(TEXT), tower, Projector(tower.width, TEXT.n_embd), IMAGE).eval()


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def row(*parts):
    return [token for part in parts for token in ([part] if isinstance(part, int) else part)]


PICTURE = [IMAGE] * 4
IDS = torch.tensor([row(3, PICTURE, 5, 6, PICTURE, 7), row(8, 9, PICTURE, 1, 2, 3, 4, 5, 6)])


def test_the_splice_equals_one_by_hand(model, pixels):
    features = model.projector(model.tower(pixels))
    embed = model.net.token_embedding.weight
    first = torch.cat([embed[[3]], features[0], embed[[5, 6]], features[1], embed[[7]]])
    second = torch.cat([embed[[8, 9]], features[2], embed[[1, 2, 3, 4, 5, 6]]])
    by_hand = torch.stack([first, second])
    assert torch.equal(model.embedded(IDS, model.image_features(pixels)), by_hand)
    no_pictures = IDS.clamp(max=IMAGE - 1)  # other ids in those places change nothing
    expected = model.net.logits(model.net.hidden(no_pictures, embedded_BTC=by_hand))
    assert torch.equal(model(IDS, pixels), expected)
    assert torch.equal(model(IDS, features_NPC=features), expected)
    other = model(IDS, pixels.flip(0))
    assert (other - expected).abs().max() > 1e-3
    assert torch.equal(other[0, 0], expected[0, 0])  # before the picture


def test_text_alone_touches_neither_tower_nor_projector(model):
    ids = torch.tensor([[1, 2, 3, 4]])
    asked = []
    for part in (model.tower, model.projector):
        part.register_forward_hook(lambda *_: asked.append(1))
    assert torch.equal(model(ids), model.net(ids))
    assert torch.equal(model(ids, torch.zeros(0, 3, 28, 28)), model.net(ids))
    total, _ = model.answer_loss(ids, ids)
    total.backward()
    assert not asked
    assert all(p.grad is None for p in model.projector.parameters())


def test_text_alone_gives_zero_gradients_where_ddp_waits(model):
    model.touch_unused = True
    ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(model(ids), model.net(ids))
    total, count = model.answer_loss(ids, ids)
    total.backward()
    assert count == 4
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.projector.parameters())
    assert all(p.grad is None for p in model.tower.parameters())


def test_the_loss_is_that_of_the_logits_without_image_tokens(model, pixels):
    targets = IDS.roll(-1, 1)
    targets[:, -1] = -100
    total, count = model.answer_loss(IDS, targets, pixels)
    wanted = targets.masked_fill(targets == IMAGE, -100)
    expected = torch.nn.functional.cross_entropy(model(IDS, pixels).flatten(0, 1), wanted.flatten(), reduction="sum")
    torch.testing.assert_close(total, expected)
    assert count == (wanted >= 0).sum() < (targets >= 0).sum()


def test_packed_documents_see_only_their_own_pictures(model, pixels):
    packed = torch.tensor([row(1, PICTURE, 2, 3, PICTURE, 4)])
    documents = torch.tensor([[0] * 7 + [1] * 5])
    alone = model(packed[:, 7:], pixels[1:2])
    torch.testing.assert_close(model(packed, pixels[:2], documents)[:, 7:], alone)


@pytest.mark.parametrize(("ids", "count"), [(IDS, 2), (IDS[:, :-8], 3), (IDS, 0)])
def test_image_tokens_and_features_must_match(model, pixels, ids, count):
    found = int((ids == IMAGE).sum())
    with pytest.raises(ValueError, match=f"{found} image tokens .id 60. for {count} pictures, which take {4 * count}"):
        model(ids, pixels[:count])


@pytest.mark.parametrize("cfg", [VIT, CNN], ids=["vit", "efficientnet"])
def test_a_frozen_tower_never_changes(cfg):
    tower = build_tower(cfg, 16).train()
    assert not any(module.training for module in tower.modules())
    pixels = torch.randn(2, 3, *tower.image_size)
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    features = tower(pixels)
    assert features.shape == (2, tower.tokens, tower.width)
    assert not features.requires_grad
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in tower.state_dict().items())


@pytest.mark.parametrize(("cfg", "layer"), [(VIT, -1), (VIT, -2), (CNN, -2)])
def test_a_trainable_tower_has_no_parameter_without_gradient(cfg, layer):
    with torch.no_grad():
        tower = build_tower(cfg, 16, layer, trainable=True)
    tower(torch.randn(2, 3, *tower.image_size)).square().mean().backward()
    learning = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    assert 0 < len(learning) < len(list(tower.parameters()))
    if layer == -2 and cfg is VIT:
        assert not any("resblocks.2" in name for name in learning)


def test_layers_of_a_vision_transformer():
    tower = build_tower(VIT, 16, layer=-2)
    visual, pixels = tower.visual, torch.randn(2, 3, 28, 28)
    states = visual.ln_pre(_before_norm(visual, pixels))
    for block in visual.transformer.resblocks[:2]:
        states = block(states)
    torch.testing.assert_close(tower(pixels), states[:, 1:])
    assert (tower.tokens, tower.width) == (4, 32)


def _before_norm(visual, pixels):
    patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(pixels), 1, -1)
    return torch.cat([first, patches], dim=1) + visual.positional_embedding


def test_stages_of_a_convolutional_tower():
    tower = build_tower(CNN, 16, layer=-2)
    trunk, pixels = tower.visual.trunk, torch.randn(1, 3, 64, 64)
    states = trunk.bn1(trunk.conv_stem(pixels))
    for stage in trunk.blocks[:5]:
        states = stage(states)
    torch.testing.assert_close(tower(pixels)[0, 5], states[0, :, 1, 1])  # 4 x 4 patches in reading order
    assert (tower.tokens, tower.width) == (16, 112)


def test_prompt_embeddings_are_row_by_row(model, pixels):
    prompts = [row(1, PICTURE, 2, PICTURE), [4, 5], row(PICTURE, 6)]
    embeds = model.prompt_embeds(prompts, [pixels[:2], None, pixels[2:]])
    assert embeds[1] is None
    torch.testing.assert_close(
        embeds[0], model.embedded(torch.tensor([prompts[0]]), model.image_features(pixels)[:2])[0]
    )
    assert embeds[2].shape == (5, 24)
    with pytest.raises(ValueError, match="4 image tokens"):
        model.prompt_embeds([prompts[2]], [None])


def test_expansion():
    assert expand_image_tokens([1, IMAGE, 2, IMAGE], IMAGE, 3) == [1, *[IMAGE] * 3, 2, *[IMAGE] * 3]


def test_refusals(model, pixels):
    with pytest.raises(ValueError, match="layer -2 gives 32 features, the projector takes 40"):
        VisionLanguageModel(model.net, model.tower, Projector(40, 24), IMAGE)
    with pytest.raises(ValueError, match="25 features for n_embd=24"):
        VisionLanguageModel(model.net, model.tower, Projector(32, 25), IMAGE)
    with pytest.raises(ValueError, match="image_token_id=61 is outside vocab_size=61"):
        VisionLanguageModel(model.net, model.tower, model.projector, 61)
    with pytest.raises(ValueError, match="projector='resampler'"):
        Projector(32, 24, "resampler")
    with pytest.raises(ValueError, match=r"pictures of shape \(3, 20, 28\)"):
        model.tower(pixels[:, :, :20])
    with pytest.raises(ValueError, match="layer=-4 is not in this tower"):
        build_tower(VIT, 16, layer=-4)
    with pytest.raises(ValueError, match="layer=1 must count from the end"):
        build_tower(VIT, 16, layer=1)
    with pytest.raises(ValueError, match="patch_sise"):
        build_tower({**VIT, "patch_sise": 14}, 16)
    with pytest.raises(ValueError, match="Linear has no forward_intermediates"):
        VisionTower(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="give one of the two"):
        model(IDS, pixels, features_NPC=pixels)
