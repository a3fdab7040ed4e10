"""Puts every trainable parameter of a network in exactly one optimizer group.

The rule, first match wins, a shared (tied) parameter counted once where it is first found:

| kind         | what                                                                           |
|--------------|--------------------------------------------------------------------------------|
| "embeddings" | weight of an `nn.Embedding`, or a bare parameter called *embed* / *position*   |
| "head"       | matrix of the output projection: a module called `head` or `lm_head`, if not tied |
| "vectors"    | fewer than two dimensions: biases, gains and shifts of norms                   |
| "hidden"     | matrices (out, in) inside `blocks`, and stacks of matrices (experts, out, in)  |
| "matrices"   | what is left with two or more dimensions: convolutions, projectors outside blocks |
"""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

KINDS = ("embeddings", "head", "vectors", "hidden", "matrices")
_HEAD_NAMES = ("head", "lm_head")

NamedParameters = list[tuple[str, nn.Parameter]]


def parameter_kinds(module: nn.Module) -> dict[str, NamedParameters]:
    """Sort the trainable parameters of `module` by the rule at the top of this file.

    Returns:
        One list of (name, parameter) for each of `KINDS`, in the order of `named_parameters`; may be empty.
    """
    kinds: dict[str, NamedParameters] = {kind: [] for kind in KINDS}
    # Ids, not names: a head tied to the embedding is the embedding, whichever of the two is registered first.
    embedded = {id(embedding.weight) for embedding in module.modules() if isinstance(embedding, nn.Embedding)}
    for name, parameter, owner in _named_parameters_with_owner(module):
        if parameter.requires_grad:
            kind = "embeddings" if id(parameter) in embedded else _kind(name, parameter, owner)
            kinds[kind].append((name, parameter))
    _assert_each_once(module, kinds)
    return kinds


def parameter_groups(
    module: nn.Module, weight_decay: float, *, decay_embeddings: bool = True, separate_embeddings: bool = False
) -> list[dict[str, Any]]:
    """Groups for an optimizer of the Adam or SGD kind: matrices decay, vectors do not.

    Decay shrinks what multiplies; a gain or a bias has no reason to be near zero.

    Args:
        module: the network.
        weight_decay: decay of everything with two or more dimensions.
        decay_embeddings: whether embeddings decay too, as in GPT-2, GPT-3 and nanoGPT (whose rule is "two or more
            dimensions").
        separate_embeddings: give embeddings a group of their own, so that their settings can differ.

    Returns:
        Non-empty groups {"name", "params", "param_names", "weight_decay"} named "decay", "embeddings", "no_decay".
    """
    kinds = parameter_kinds(module)
    decayed = kinds["hidden"] + kinds["head"] + kinds["matrices"]
    plain = list(kinds["vectors"])
    groups = []
    if separate_embeddings:
        groups.append(group("embeddings", kinds["embeddings"], weight_decay=weight_decay if decay_embeddings else 0.0))
    elif decay_embeddings:
        decayed = kinds["embeddings"] + decayed
    else:
        plain = kinds["embeddings"] + plain
    groups.append(group("decay", decayed, weight_decay=weight_decay))
    groups.append(group("no_decay", plain, weight_decay=0.0))
    return trainable(groups)


def group(name: str, named: NamedParameters, **options: Any) -> dict[str, Any]:
    """One optimizer group; `param_names` is PyTorch's own key for the names."""
    return {
        "name": name,
        "params": [parameter for _, parameter in named],
        "param_names": [parameter_name for parameter_name, _ in named],
        **options,
    }


def trainable(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop empty groups.

    Raises:
        ValueError: nothing is left to train.
    """
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise ValueError("the network has no trainable parameter; leave requires_grad=True on at least one")
    return groups


def _named_parameters_with_owner(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    owners = dict(module.named_modules())
    for name, parameter in module.named_parameters():  # yields a shared parameter once
        yield name, parameter, owners[name.rpartition(".")[0]]


def _kind(name: str, parameter: nn.Parameter, owner: nn.Module) -> str:
    *path, own_name = name.split(".")
    if isinstance(owner, nn.Embedding) or "embed" in own_name or "position" in own_name:
        return "embeddings"
    if parameter.ndim < 2:
        return "vectors"
    if path and path[-1] in _HEAD_NAMES:
        return "head"
    if "blocks" in path and parameter.ndim in (2, 3) and not isinstance(owner, _ConvNd):
        return "hidden"
    return "matrices"


def _assert_each_once(module: nn.Module, kinds: dict[str, NamedParameters]) -> None:
    placed = [id(parameter) for named in kinds.values() for _, parameter in named]
    expected = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert len(placed) == len(set(placed)), "a parameter is in two optimizer groups"
    assert set(placed) == expected, "a trainable parameter is in no optimizer group"
