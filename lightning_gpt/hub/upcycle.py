"""A dense network made into a mixture of experts (sparse upcycling, Komatsuzaki et al., 2023)."""

from dataclasses import replace

import torch

from lightning_gpt.nn import GPT
from lightning_gpt.nn.moe_config import MoEConfig


def upcycle(net: GPT, moe: MoEConfig, noise: float = 0.0, seed: int = 0) -> GPT:
    """Every expert starts as a copy of the dense feed-forward, routers start random.

    With gates that sum to one (renormalize) and no noise, the new network computes exactly what the old one did.

    Args:
        net: dense, without biases in its feed-forward: experts have none.
        moe: expert_hidden must be left null; there are no shared experts to copy to.
        noise: standard deviation, relative to each matrix's own, of what is added so that copies differ.
        seed: of routers and noise.

    Returns:
        a new network; the old one is not changed.

    Raises:
        ValueError: the network has biases or experts already, or the mixture changes the experts' shape.
    """
    config = net.config
    if config.moe is not None:
        raise ValueError("the model has experts already: upcycling starts from a dense model")
    if config.bias:
        raise ValueError("the model has biases (bias=True), experts have none: upcycle a model trained with bias=False")
    if moe.expert_hidden not in (None, config.hidden_size):
        raise ValueError(
            f"moe.expert_hidden={moe.expert_hidden} differs from the dense width {config.hidden_size}: leave it null"
        )
    if moe.feed_forward not in (None, config.feed_forward):
        raise ValueError(
            f"moe.feed_forward={moe.feed_forward} differs from the dense {config.feed_forward}: leave it null"
        )
    if moe.shared:
        raise ValueError(f"moe.shared={moe.shared}: a copy as a shared expert would count twice, use moe.shared=0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixture = GPT(replace(config, moe=moe)).to(net.token_embedding.weight.dtype)
        dense, state = net.state_dict(), mixture.state_dict()
        for name in state:
            if name in dense:
                state[name] = dense[name].detach().cpu().clone()
                continue
            block, _, part = name.partition(".feed_forward.experts.")
            if part:
                first = "gate_up" if f"{block}.feed_forward.gate_up.weight" in dense else "up"
                source = dense[f"{block}.feed_forward.{first if part == 'up' else 'down'}.weight"].detach().cpu()
                copies = source.expand(moe.experts, *source.shape).clone()
                state[name] = copies + noise * source.std() * torch.randn_like(copies) if noise else copies
        mixture.load_state_dict(state)
    return mixture.train(net.training)
