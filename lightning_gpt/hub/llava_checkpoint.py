"""Training checkpoints of vision-language models as models: one file, one loader, whatever was learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_gpt.hub.adapters import base_fingerprint
from lightning_gpt.hub.checkpoint import CHECKPOINT_KEY, _network_state, read_checkpoint, roles_from, with_adapters
from lightning_gpt.hub.growth import grown
from lightning_gpt.hub.network import network_from_state
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.vision_language import Projector, VisionLanguageModel
from lightning_gpt.nn.vision_tower import build_tower
from lightning_gpt.text.tokenizer import Tokenizer


def holds_llava(content: dict[str, Any]) -> bool:
    """Whether a checkpoint's dictionary is of tasks.LLaVA."""
    about = content.get(CHECKPOINT_KEY)
    return isinstance(about, dict) and "llava" in about


def load_llava_checkpoint(
    path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[VisionLanguageModel, Tokenizer]:
    """The model (in evaluation mode) and tokenizer of a checkpoint.

    A language model that did not learn is read from where it came from, as are the weights under adapters, which are
    merged.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or its base is gone or another one now.
    """
    content = read_checkpoint(path)
    if not holds_llava(content):
        raise ValueError(f"{path} holds no vision-language model")
    about = content[CHECKPOINT_KEY]
    parts, tokenizer = about["llava"], Tokenizer.from_json(about["tokenizer"], roles_from(about))
    net = _language_model(str(path), about, content, dtype, device)
    vision = parts["tower"]
    cfg = {**vision["vision_cfg"], "timm_model_pretrained": False}  # the weights are here
    quick, preprocess = vision.get("quick_gelu", False), parts["preprocess"]
    tower = build_tower(cfg, vision["embed_dim"], parts["layer"], quick, preprocess)
    tower.load_state_dict(_part(content, "tower."))
    projector = Projector(tower.width, net.config.n_embd, parts["projector"])
    projector.load_state_dict(_part(content, "projector."))
    model = VisionLanguageModel(net, tower.to(device, dtype), projector.to(device, dtype), parts["image_token_id"])
    return model.eval(), tokenizer


def _part(content: dict[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    state = content["state_dict"]
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _language_model(path: str, about: dict[str, Any], content: dict[str, Any], dtype: Any, device: Any) -> GPT:
    state = _network_state(content)
    if "base" not in about:
        return network_from_state(GPTConfig.from_dict(about["model"]), state, path, dtype, device)
    from lightning_gpt.hub.llava_opening import is_vision_language, open_llava
    from lightning_gpt.hub.opening import open_model

    base = about["base"]
    try:
        net = open_llava(base, dtype, device)[0].net if is_vision_language(base) else open_model(base, dtype, device)[0]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} needs the weights of {base}, which is not there: bring it back, it holds the language model"
        ) from None
    net = grown(net, about["model"]["vocab_size"])
    if "lora" in about:
        from lightning_gpt.hub.adapters import merge_adapters

        return merge_adapters(with_adapters(net, about, state, path)).eval()
    if base_fingerprint(net) != about["base_fingerprint"]:
        raise ValueError(f"{path} needs the weights of another {base} than the one that is there now")
    return net.eval()
