import pytest
import torch
from torch import nn

from lightning_gpt.optim import parameter_groups, parameter_kinds


def names(groups):
    return {group["name"]: set(group["param_names"]) for group in groups}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", [{}, {"decay_embeddings": False}, {"separate_embeddings": True}])
def test_every_parameter_is_in_exactly_one_group(tiny_gpt, tied, options):
    network = tiny_gpt(tied=tied, experts=2)
    groups = parameter_groups(network, 0.1, **options)
    placed = [id(p) for group in groups for p in group["params"]]
    assert len(placed) == len(set(placed))
    assert set(placed) == {id(p) for p in network.parameters()}
    for group in groups:
        assert [id(dict(network.named_parameters())[name]) for name in group["param_names"]] == [
            id(p) for p in group["params"]
        ]


def test_default_rule_is_nanogpts_two_or_more_dimensions(tiny_gpt):
    network = tiny_gpt(experts=2)
    decay, no_decay = parameter_groups(network, 0.1)
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in decay["params"]} == {id(p) for p in network.parameters() if p.ndim >= 2}


def test_embeddings_without_decay(tiny_gpt):
    named = names(parameter_groups(tiny_gpt(), 0.1, decay_embeddings=False))
    assert {"token_embedding.weight", "position_embedding.weight"} <= named["no_decay"]
    assert "blocks.0.up.weight" in named["decay"]


def test_kinds_of_a_gpt(tiny_gpt):
    kinds = {
        kind: {name for name, _ in named} for kind, named in parameter_kinds(tiny_gpt(tied=False, experts=2)).items()
    }
    assert kinds["embeddings"] == {"token_embedding.weight", "position_embedding.weight"}
    assert kinds["head"] == {"head.weight"}
    assert kinds["hidden"] == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("up.weight", "down.weight", "experts")}
    assert kinds["matrices"] == set()
    assert "final_norm.bias" in kinds["vectors"]


def test_tied_head_is_an_embedding_even_when_registered_first():
    network = nn.Module()
    network.head = nn.Linear(4, 8, bias=False)
    network.token_embedding = nn.Embedding(8, 4)
    network.token_embedding.weight = network.head.weight
    kinds = parameter_kinds(network)
    assert len(kinds["embeddings"]) == 1
    assert kinds["head"] == []


def test_bare_positions_convolutions_and_outside_projectors():
    network = nn.Module()
    network.position_embedding = nn.Parameter(torch.zeros(1, 9, 4))
    network.patches = nn.Conv2d(3, 4, 2)
    network.projector = nn.Linear(4, 4, bias=False)
    kinds = {kind: [name for name, _ in named] for kind, named in parameter_kinds(network).items()}
    assert kinds["embeddings"] == ["position_embedding"]
    assert kinds["matrices"] == ["patches.weight", "projector.weight"]


def test_frozen_parameters_are_left_out(tiny_gpt):
    network = tiny_gpt()
    network.token_embedding.requires_grad_(False)
    groups = parameter_groups(network, 0.1)
    assert all("token_embedding.weight" not in group["param_names"] for group in groups)


def test_nothing_to_train_is_refused(tiny_gpt):
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(tiny_gpt().requires_grad_(False), 0.1)
