"""Reward models as directories: a model directory, reward_head.safetensors, and reward.json with what scores mean."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from lightning_gpt.hub.checkpoint import CHECKPOINT_KEY, read_checkpoint
from lightning_gpt.hub.model_directory import save_model
from lightning_gpt.hub.opening import find_checkpoint, open_model
from lightning_gpt.nn import GPT
from lightning_gpt.nn.heads import ScalarHead
from lightning_gpt.text.tokenizer import Tokenizer

HEAD_FILE = "reward_head.safetensors"
ABOUT_FILE = "reward.json"


@dataclass(frozen=True)
class RewardScale:
    """What a reward model's numbers mean."""

    kind: Literal["outcome", "process"] = "outcome"
    """outcome: one number at an answer's last token; process: a logit at the last token of every step."""
    mean: float = 0.0
    """Of the rewards over the validation answers."""
    deviation: float = 1.0
    """Of the same."""
    step_end: str = "\n"
    """Ends a step, for process rewards."""
    chat: bool = False
    """Whether it learnt from conversations: answers are then scored in the chat template, as they were learnt."""


def save_reward_model(
    directory: str | Path, net: GPT, head: ScalarHead, tokenizer: Tokenizer | None, scale: RewardScale
) -> None:
    """Writes the directory: network and tokenizer as any model's, then head and scale."""
    directory = Path(directory)
    save_model(directory, net, tokenizer)
    save_file({name: t.detach().cpu().contiguous() for name, t in head.state_dict().items()}, directory / HEAD_FILE)
    (directory / ABOUT_FILE).write_text(json.dumps(asdict(scale), indent=2) + "\n", encoding="utf-8")


def is_reward_model(path: str | Path) -> bool:
    """Whether a directory, run or checkpoint holds a reward model."""
    path = Path(path)
    if (path / HEAD_FILE).exists():
        return True
    if (path / "config.json").exists():
        return False
    try:
        file = find_checkpoint(path) if path.is_dir() else path
    except FileNotFoundError:
        return False
    return file.suffix == ".ckpt" and "reward" in read_checkpoint(file).get(CHECKPOINT_KEY, {})


def load_reward_model(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[GPT, ScalarHead, Tokenizer, RewardScale]:
    """Network and head (both in evaluation mode), tokenizer and scale.

    Args:
        path: directory that `save_reward_model` wrote, or run or checkpoint of a reward model's training.
        device: where they go.

    Raises:
        FileNotFoundError, ValueError: it is none of these.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name a reward model's directory, run or checkpoint")
    net, tokenizer = open_model(path, device=device)
    if tokenizer is None:
        raise ValueError(f"{path} has no tokenizer.json: put it beside config.json")
    head = ScalarHead(net.config.n_embd).to(device)
    if (path / HEAD_FILE).exists():
        head.load_state_dict(load_file(path / HEAD_FILE, device=str(device)))
        scale = RewardScale(**json.loads((path / ABOUT_FILE).read_text(encoding="utf-8")))
        return net, head.eval(), tokenizer, scale
    if (path / "config.json").exists():
        raise ValueError(f"{path} is a language model, not a reward model: it has no {HEAD_FILE}")
    content = read_checkpoint(find_checkpoint(path) if path.is_dir() else path)
    about = content[CHECKPOINT_KEY].get("reward")
    if about is None:
        raise ValueError(f"{path} was not trained as a reward model: use a run of lightning_gpt.tasks.RewardModel")
    state = content["state_dict"]
    head.load_state_dict({name: state[f"head.{name}"].to(device) for name in ("weight", "bias")})
    return net, head.eval(), tokenizer, RewardScale(**about)
