"""Contrastive losses against open_clip's, GradCache against the whole batch, recalls against torchmetrics."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gpt.objectives.contrastive import InfoNCE, SigLIP, info_nce, sigmoid_loss
from lightning_gpt.objectives.grad_cache import cached_contrast
from lightning_gpt.objectives.retrieval import classification_metrics, ranks, retrieval_metrics
from lightning_gpt.objectives.ridge import ridge


@pytest.fixture
def features():
    torch.manual_seed(0)
    return tuple(F.normalize(torch.randn(12, 8), dim=1) for _ in range(2))


def test_the_twins_equal_open_clip(features):
    images, texts = features
    scale, bias = torch.tensor(9.0), torch.tensor(-4.0)
    assert torch.allclose(InfoNCE().build(0, 1)(images, texts, scale), info_nce(images, texts, scale), atol=1e-6)
    theirs = SigLIP().build(0, 1)(images, texts, scale, bias)
    assert torch.allclose(theirs, sigmoid_loss(images, texts, scale, bias), atol=1e-5)


def test_chance_is_the_loss_of_towers_that_tell_nothing_apart():
    same = F.normalize(torch.ones(16, 4), dim=1)
    assert info_nce(same, same, 5.0).item() == pytest.approx(InfoNCE().chance(16), abs=1e-5)
    log_odds = math.log((1 / 16) / (1 - 1 / 16))
    assert sigmoid_loss(same, same, 0.0, log_odds).item() == pytest.approx(SigLIP().chance(16), abs=1e-5)


class Tower(nn.Module):
    """A network with dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 8))

    def forward(self, inputs):
        return F.normalize(self.layers(inputs), dim=-1)


@pytest.mark.parametrize("chunk", [1, 3, 5, 12, 50])
@pytest.mark.parametrize("dropout", [False, True])
def test_grad_cache_is_the_gradient_of_the_whole_batch(chunk, dropout):
    torch.manual_seed(1)
    towers = [Tower(5).train(dropout), Tower(7).train(dropout)]
    inputs = [torch.randn(12, 5), torch.randn(12, 7)]
    scale = torch.tensor(2.0, requires_grad=True)
    leaves = [*towers[0].parameters(), *towers[1].parameters(), scale]

    def loss(images, texts):
        return info_nce(images, texts, scale.exp())

    def whole() -> list[torch.Tensor]:
        """Chunk by chunk too where there is dropout, whose draws depend on the shapes."""
        torch.manual_seed(2)
        parts = [torch.cat([tower(part) for part in batch.split(chunk)]) for tower, batch in zip(towers, inputs)]
        value = loss(*parts)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    expected = whole()
    torch.manual_seed(2)
    last, value = cached_contrast(list(zip(towers, inputs)), loss, [scale], chunk)
    last.backward()
    assert torch.allclose(value, expected[0], atol=1e-6)
    for leaf, gradient in zip(leaves, expected[1:], strict=True):
        assert torch.allclose(leaf.grad, gradient, atol=1e-6)


def test_small_batches_alone_are_another_objective(features):
    images, texts = (one.clone().requires_grad_() for one in features)
    (whole,) = torch.autograd.grad(info_nce(images, texts, 10.0), images)
    parts = [info_nce(i, t, 10.0) for i, t in zip(images.split(3), texts.split(3))]
    (accumulated,) = torch.autograd.grad(torch.stack(parts).mean(), images)
    assert F.cosine_similarity(whole.flatten(), accumulated.flatten(), dim=0) < 0.95


def test_recalls_equal_torchmetrics(features):
    from torchmetrics.functional.retrieval import retrieval_hit_rate

    images, texts = features
    found = retrieval_metrics(images, texts)
    for k in (1, 5, 10):
        hits = [retrieval_hit_rate(images[n] @ texts.T, torch.arange(12) == n, top_k=k) for n in range(12)]
        assert found[f"image_to_text_r{k}"] == pytest.approx(torch.stack(hits).mean().item())
        assert found[f"r{k}"] == (found[f"image_to_text_r{k}"] + found[f"text_to_image_r{k}"]) / 2


def test_features_that_are_all_equal_rank_as_chance():
    same = torch.ones(101, 4) / 2
    assert ranks(same, same, torch.arange(101)).unique().item() == 51
    assert retrieval_metrics(same, same)["r10"] == 0


def test_classification_counts_classes_alike():
    classes = torch.eye(3)
    images = classes[[0, 0, 0, 0, 1]]
    metrics = classification_metrics(images, classes, torch.tensor([0, 0, 0, 0, 2]))
    assert metrics == {"top1": pytest.approx(0.8), "class_mean_top1": 0.5}


def test_ridge_is_least_squares_when_nothing_is_penalised():
    torch.manual_seed(3)
    features, truth = torch.randn(50, 4), torch.randn(4, 3)
    weights, mean = ridge(features, features @ truth + 1, 1e-9)
    assert torch.allclose(weights, truth, atol=1e-4) and torch.allclose(mean, features.mean(0))


def test_temperatures_are_checked_and_kept_in_bounds():
    with pytest.raises(ValueError, match="temperature=0"):
        InfoNCE(temperature=0)
    with pytest.raises(ValueError, match="max_scale=2"):
        InfoNCE(temperature=0.1, max_scale=2)
    net = nn.Module()
    net.logit_scale, net.logit_bias = nn.Parameter(torch.zeros(())), None
    SigLIP(bias=-3.0).prepare(net)
    assert net.logit_bias.item() == -3 and net.logit_scale.item() == pytest.approx(math.log(10))
    InfoNCE(learn_temperature=False).prepare(net)
    assert net.logit_bias is None and not net.logit_scale.requires_grad
    net.logit_scale.data.fill_(50.0)
    InfoNCE().clamp(net)
    assert net.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)
