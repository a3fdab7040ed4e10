"""CLIP's vision transformer (Radford et al., 2021): transformers' CLIPVisionModel and open_clip's VisionTransformer.

Both compute the same function: pictures to patches, a class token, learned positions, a norm, blocks. Only the last
projection into CLIP's space, which LLaVA does without, has no place in CLIPVisionModel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.nn.vision_tower import VisionTower

QUICK_GELU, GELU = "quick_gelu", "gelu"
DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": QUICK_GELU,
    "layer_norm_eps": 1e-5,
}
"""Of transformers' CLIPVisionConfig."""
SPELLED = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs"}
"""Settings of open_clip that CLIPVisionConfig has a counterpart for."""
BESIDE = {"patch_dropout", "pos_embed_type", "pool_type", "final_ln_after_pool", "output_tokens"}
"""Settings that do not change the features of patches."""
WITHOUT_EFFECT = ("attn_pooler_", "timm_")
EPS = 1e-5


def from_clip_config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """CLIPVisionConfig -> embed_dim, vision_cfg and quick_gelu, as nn.vision_tower.build_tower takes them.

    Raises:
        ValueError: a setting that open_clip's tower has no counterpart for.
    """
    values = {name: default if theirs.get(name) is None else theirs[name] for name, default in DEFAULTS.items()}
    width, heads, hidden = (values[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size"))
    if values["hidden_act"] not in (QUICK_GELU, GELU):
        raise ValueError(
            f"vision_config.hidden_act={values['hidden_act']!r} is not supported: {QUICK_GELU}, {GELU} are"
        )
    if values["num_channels"] != 3:
        raise ValueError(f"vision_config.num_channels={values['num_channels']} is not supported: pictures have 3")
    if width % heads:
        raise ValueError(f"vision_config.hidden_size={width} is not divisible by num_attention_heads={heads}")
    ratio = hidden / width
    vision_cfg = {
        "image_size": values["image_size"],
        "patch_size": values["patch_size"],
        "width": width,
        "head_width": width // heads,
        "layers": values["num_hidden_layers"],
        "mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,  # open_clip rounds down
    }
    if values["layer_norm_eps"] != EPS:
        vision_cfg["norm_kwargs"] = {"eps": values["layer_norm_eps"]}
    return {
        "embed_dim": values["projection_dim"],
        "vision_cfg": vision_cfg,
        "quick_gelu": values["hidden_act"] == QUICK_GELU,
    }


def clip_obstacles(tower: VisionTower) -> list[str]:
    """Settings of a tower that CLIPVisionModel has no counterpart for, as `vision_cfg.field=value`."""
    if tower.config is None:
        return ["an unknown vision_cfg"]
    cfg = tower.config["vision_cfg"]
    if cfg.get("timm_model_name"):
        return [f"vision_cfg.timm_model_name={cfg['timm_model_name']}"]
    known = SPELLED | BESIDE
    found = [name for name, value in cfg.items() if value and name not in known and not name.startswith(WITHOUT_EFFECT)]
    sizes = [cfg.get("patch_size", 16), cfg.get("image_size", 224)]
    found += [name for name, size in zip(("patch_size", "image_size"), sizes) if not isinstance(size, int)]
    if not isinstance(cfg.get("layers", 12), int):
        found.append("layers")
    if set(cfg.get("norm_kwargs") or {}) - {"eps"}:
        found.append("norm_kwargs")
    return [f"vision_cfg.{name}={cfg.get(name)}" for name in dict.fromkeys(found)]


def to_clip_config(tower: VisionTower) -> dict[str, Any]:
    """config.json of CLIPVisionModel, of a tower without obstacles."""
    cfg, state = tower.config["vision_cfg"], tower.visual.state_dict()
    patches = state["conv1.weight"]
    layers = len(tower.visual.transformer.resblocks)
    return {
        "model_type": "clip_vision_model",
        "hidden_size": patches.shape[0],
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "projection_dim": tower.config["embed_dim"],
        "num_hidden_layers": layers,
        "num_attention_heads": tower.visual.transformer.resblocks[0].attn.num_heads,
        "num_channels": patches.shape[1],
        "image_size": tower.image_size[0],
        "patch_size": patches.shape[-1],
        "hidden_act": QUICK_GELU if tower.config.get("quick_gelu") else GELU,
        "layer_norm_eps": (cfg.get("norm_kwargs") or {}).get("eps", EPS),
    }


def _table(layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every tensor: open_clip's name, and theirs whose rows it stacks."""
    yield "class_embedding", ("embeddings.class_embedding",)
    yield "conv1.weight", ("embeddings.patch_embedding.weight",)
    yield "positional_embedding", ("embeddings.position_embedding.weight",)
    for kind in ("weight", "bias"):
        yield f"ln_pre.{kind}", (f"pre_layrnorm.{kind}",)  # their spelling
        yield f"ln_post.{kind}", (f"post_layernorm.{kind}",)
        for layer in range(layers):
            ours, theirs = f"transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
            yield f"{ours}attn.in_proj_{kind}", tuple(f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv")
            yield f"{ours}attn.out_proj.{kind}", (f"{theirs}self_attn.out_proj.{kind}",)
            yield f"{ours}ln_1.{kind}", (f"{theirs}layer_norm1.{kind}",)
            yield f"{ours}ln_2.{kind}", (f"{theirs}layer_norm2.{kind}",)
            yield f"{ours}mlp.c_fc.{kind}", (f"{theirs}mlp.fc1.{kind}",)
            yield f"{ours}mlp.c_proj.{kind}", (f"{theirs}mlp.fc2.{kind}",)


def export_clip_tensors(tower: VisionTower) -> dict[str, Tensor]:
    """Tensors of CLIPVisionModel, contiguous, on the CPU."""
    state, found = tower.visual.state_dict(), {}
    for ours, theirs in _table(len(tower.visual.transformer.resblocks)):
        parts = state[ours].detach().cpu().chunk(len(theirs))
        found |= {name: part.contiguous() for name, part in zip(theirs, parts, strict=True)}
    return found


def import_clip_tensors(tower: VisionTower, found: Mapping[str, Tensor], source: str) -> None:
    """Puts tensors of CLIPVisionModel into a tower, in their own type.

    Args:
        tower: built from their configuration.
        found: tensors by name; the last norm may be missing, for no features come after it.
        source: file or directory, for messages.

    Raises:
        ValueError: missing, left-over or misshapen tensors, by name.
    """
    found = {name: tensor for name, tensor in found.items() if not name.endswith(".position_ids")}
    expected = tower.visual.state_dict()
    dtype = next(iter(found.values())).dtype if found else torch.float32
    # Untouched by these files and without effect on features: the last norm and the projection into CLIP's space.
    state = {"proj": torch.zeros_like(expected["proj"], dtype=dtype)}
    missing = []
    for ours, theirs in _table(len(tower.visual.transformer.resblocks)):
        lacking = [name for name in theirs if name not in found]
        if lacking and ours.startswith("ln_post."):
            state[ours] = expected[ours].to(dtype)
            continue
        missing += lacking
        if not lacking:
            parts = [found.pop(name) for name in theirs]
            state[ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
            if state[ours].shape != expected[ours].shape:
                raise ValueError(
                    f"{source}: {theirs[0]} has shape {tuple(parts[0].shape)}, which its vision_config does not ask for"
                )
    for what, names in (("lacks", missing), ("has unexpected", sorted(found))):
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise ValueError(f"{source} {what} tensor(s) of its image tower: {shown}")
    tower.visual.load_state_dict(state, assign=True)
