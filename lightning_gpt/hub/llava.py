"""Vision-language models as directories.

Where transformers has the parts (a CLIP vision transformer, an MLP projector and a language model of the LLaMA kind)
the directory is its LLaVA format: LlavaForConditionalGeneration.from_pretrained and AutoProcessor.from_pretrained read
it. Otherwise config.json says "model_type": "lightning_gpt_llava" and the tensors keep our names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.hub.clip_vision import (
    clip_obstacles,
    export_clip_tensors,
    from_clip_config,
    import_clip_tensors,
    to_clip_config,
)
from lightning_gpt.hub.family import Family, export_tensors
from lightning_gpt.hub.huggingface import (
    OWN_TYPE,
    family_of,
    network_of,
    obstacles,
    read_config,
    read_tensors,
)
from lightning_gpt.hub.llama import LLAMA_FAMILIES
from lightning_gpt.hub.model_directory import (
    check_tokenizer,
    load_tokenizer,
    special_token_ids,
    stored_type,
    whole_directory,
    write_json,
    write_text_files,
    write_weights,
)
from lightning_gpt.hub.preprocessing import preprocess_obstacles, read_preprocessor, to_preprocessor
from lightning_gpt.nn import GPT
from lightning_gpt.nn.vision_language import Projector, VisionLanguageModel
from lightning_gpt.nn.vision_tower import VisionTower, build_tower
from lightning_gpt.text.tokenizer import Tokenizer

LLAVA_TYPE = "llava"
OWN_LLAVA_TYPE = "lightning_gpt_llava"
"""model_type of pairs that no class of transformers can hold."""
VISION_DEFAULTS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
"""CLIP's ViT-L/14 at 336 pixels, which transformers' LlavaConfig takes when there is no vision_config."""
PROJECTOR_NAMES = {"0": "linear_1", "2": "linear_2"}


def is_llava(directory: str | Path) -> bool:
    """Whether a directory holds a vision-language model, ours or transformers' LLaVA."""
    path = Path(directory) / "config.json"
    try:
        return path.exists() and read_config(path.parent).get("model_type") in (LLAVA_TYPE, OWN_LLAVA_TYPE)
    except ValueError:
        return False


def llava_obstacles(model: VisionLanguageModel) -> list[str]:
    """What transformers' LLaVA has no counterpart for, as `part.field=value`; [] when it can hold the model."""
    family = family_of(model.net.config)
    found = [f"text.{field}" for field in obstacles(model.net.config)]
    if family is not None and family not in LLAMA_FAMILIES:
        found.append(f"text.model_type={family.model_type}")
    if model.projector.kind != "mlp":
        found.append(f"projector={model.projector.kind}")
    return found + clip_obstacles(model.tower) + preprocess_obstacles(model.tower.preprocess)


def save_llava(
    directory: str | Path,
    model: VisionLanguageModel,
    tokenizer: Tokenizer | None,
    generation: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Writes a directory as a whole: it appears complete or not at all.

    Args:
        directory: where; an older model directory there is replaced, anything else is refused.
        model: all its parts.
        tokenizer: its tokenizer, with the image token among its special tokens.
        generation: fields of generation_config.json.
        dtype: of the stored weights; None = as the language model's are.

    Returns:
        model_type: "llava" when transformers reads it, else "lightning_gpt_llava".

    Raises:
        ValueError: the directory holds something else, the tokenizer does not belong to the network or lacks the image
            token, or nobody said what the tower was built from.
    """
    check_tokenizer(model.net, tokenizer)
    if tokenizer is not None and model.image_token_id not in tokenizer.special_tokens.values():
        raise ValueError(
            f"image_token_id={model.image_token_id} is no special token of the tokenizer: add one, such as <image>"
        )
    if model.tower.config is None:
        raise ValueError("the tower does not know its vision_cfg: give VisionTower the config that it was built from")
    dtype = dtype or model.net.token_embedding.weight.dtype
    family = None if llava_obstacles(model) else family_of(model.net.config)
    with whole_directory(Path(directory)) as temporary:
        if family is None:
            kind, values, tensors = OWN_LLAVA_TYPE, _own_config(model), _own_tensors(model)
            values = {"architectures": ["VisionLanguageModel"], **values}
        else:
            kind, values, tensors = LLAVA_TYPE, _their_config(model, family), _their_tensors(model, family)
            values = {"architectures": ["LlavaForConditionalGeneration"], **values}
            _write_processor(temporary, model, tokenizer)
        shared = {"image_token_index": model.image_token_id, "image_seq_length": model.tower.tokens}
        values = {"model_type": kind, **values, **shared, **special_token_ids(tokenizer), **stored_type(dtype)}
        write_json(temporary / "config.json", values)
        write_weights(temporary, tensors, dtype)
        write_text_files(temporary, tokenizer, model.net.config.block_size, generation or {})
    return kind


def load_llava(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    trainable_tower: bool = False,
) -> tuple[VisionLanguageModel, Tokenizer | None]:
    """The model (in evaluation mode) and tokenizer of a directory that this program or transformers wrote.

    Args:
        directory: with config.json.
        dtype: of the parameters; None = as stored.
        device: where they go.
        trainable_tower: as VisionTower's trainable.

    Returns:
        The tokenizer is None when the directory has none.

    Raises:
        FileNotFoundError, ValueError: missing, damaged or unsupported, naming the file and the field.
        ImportError: open_clip is not installed.
    """
    directory = Path(directory)
    if not (directory / "config.json").exists():
        raise FileNotFoundError(f"{directory} is no model directory: it has no config.json")
    values = read_config(directory)
    kind = values.get("model_type")
    if kind not in (LLAVA_TYPE, OWN_LLAVA_TYPE):
        raise ValueError(f"{directory} is no vision-language model: model_type={kind!r}, not {LLAVA_TYPE!r}")
    try:
        if kind == LLAVA_TYPE:
            model = _from_theirs(values, directory, dtype, device, trainable_tower)
        else:
            model = _from_own(values, directory, dtype, device, trainable_tower)
    except KeyError as error:
        raise ValueError(f"{directory / 'config.json'} lacks {error}: restore it or export the model again") from None
    model.projector.to(device, dtype)
    model.tower.to(device, dtype)
    return model.eval(), load_tokenizer(directory)


def _their_config(model: VisionLanguageModel, family: Family) -> dict[str, Any]:
    """config.json of LlavaForConditionalGeneration."""
    config = model.net.config
    head = {"model_type": family.model_type, "architectures": [family.architecture]}
    return {
        "text_config": head | family.to_config(config) | {OWN_TYPE: config.to_dict()},
        "vision_config": to_clip_config(model.tower),
        "vision_feature_layer": model.tower.layer,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _their_tensors(model: VisionLanguageModel, family: Family) -> dict[str, Tensor]:
    """Tensors under the names that every version of transformers reads."""
    text = export_tensors(family, model.net.config, model.net.state_dict())
    tensors = {f"language_model.{name}": tensor for name, tensor in text.items()}
    tensors |= {f"vision_tower.vision_model.{name}": value for name, value in export_clip_tensors(model.tower).items()}
    for name, tensor in model.projector.state_dict().items():
        place, _, kind = name.partition(".")
        tensors[f"multi_modal_projector.{PROJECTOR_NAMES[place]}.{kind}"] = tensor.detach().cpu().contiguous()
    return tensors


def _write_processor(directory: Path, model: VisionLanguageModel, tokenizer: Tokenizer | None) -> None:
    """What AutoProcessor reads."""
    preprocessor = to_preprocessor(model.tower.preprocess, model.tower.image_size)
    write_json(directory / "preprocessor_config.json", preprocessor)
    if tokenizer is None:
        return
    names = {index: name for name, index in tokenizer.special_tokens.items()}
    values = {
        "processor_class": "LlavaProcessor",
        "image_token": names[model.image_token_id],
        "patch_size": model.tower.visual.conv1.kernel_size[0],
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # the class token, which "default" then leaves out
    }
    write_json(directory / "processor_config.json", values)


def _from_theirs(
    values: dict[str, Any], directory: Path, dtype: torch.dtype | None, device: torch.device | str, trainable: bool
) -> VisionLanguageModel:
    """From transformers' format."""
    values = {"vision_config": None, "vision_feature_layer": -2, **values}
    values["vision_config"] = values["vision_config"] or VISION_DEFAULTS
    try:
        layer, text = _check_their_config(values)
        built = from_clip_config(values["vision_config"])
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from None
    parts = _parts(read_tensors(directory), directory)
    net = network_of(text, parts["language_model"], directory, dtype, device)
    tower = build_tower(**built, layer=layer, trainable=trainable)
    tower.preprocess |= read_preprocessor(directory, tower.image_size)
    import_clip_tensors(tower, parts["vision_tower"], str(directory))
    projector = Projector(tower.width, net.config.n_embd)
    places = {name: place for place, name in PROJECTOR_NAMES.items()}
    state = {}
    for name, tensor in parts["multi_modal_projector"].items():
        linear, _, kind = name.partition(".")
        state[f"{places.get(linear, linear)}.{kind}"] = tensor
    _load(projector, state, "projector", directory)
    image_token = values.get("image_token_index", values.get("image_token_id", 32000))
    return VisionLanguageModel(net, tower, projector, image_token)


def _check_their_config(values: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The tower's layer, from the end, and the configuration of the language model.

    Raises:
        ValueError: a setting that we lack.
    """
    if values.get("quantization_config"):
        raise ValueError("quantized weights are not supported: save the model unquantized first")
    plain = {
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default",
        "multimodal_projector_bias": True,
    }
    for name, supported in plain.items():
        if values.get(name, supported) != supported:
            raise ValueError(f"{name}={values[name]!r} is not supported: {supported!r} is")
    vision = values["vision_config"]
    if vision.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise ValueError(f"vision_config.model_type={vision['model_type']!r} is not supported: clip_vision_model is")
    layer, layers = values["vision_feature_layer"], from_clip_config(vision)["vision_cfg"]["layers"]
    if not isinstance(layer, int):
        raise ValueError(f"vision_feature_layer={layer} is not supported: one layer is")
    # Their layers count the embeddings as layer 0.
    layer = layer - layers - 1 if layer >= 0 else layer
    if not -layers <= layer < 0:
        raise ValueError(f"vision_feature_layer={values['vision_feature_layer']} is none of {layers} layers")
    text = {"model_type": "llama", **(values.get("text_config") or {})}
    if text["model_type"] not in {family.model_type for family in LLAMA_FAMILIES}:
        known = ", ".join(family.model_type for family in LLAMA_FAMILIES)
        raise ValueError(f"text_config.model_type={text['model_type']!r} is not supported: {known} are")
    if values.get("tie_word_embeddings"):  # wherever it stands, transformers ties
        text["tie_word_embeddings"] = True
    return layer, text


def _parts(tensors: Mapping[str, Tensor], directory: Path) -> dict[str, dict[str, Tensor]]:
    """Tensors by part, under the names of a bare language model and a bare tower.

    transformers 4 began their names with language_model.model and vision_tower.vision_model, later versions with
    model.language_model and model.vision_tower.

    Raises:
        ValueError: a tensor of no part, or a part without tensors.
    """
    parts: dict[str, dict[str, Tensor]] = {"language_model": {}, "vision_tower": {}, "multi_modal_projector": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.removeprefix("model.").partition(".")
        if name == "lm_head.weight":
            part, rest = "language_model", name
        if part not in parts:
            raise ValueError(f"{directory} has unexpected tensor {name}: it is of none of {', '.join(parts)}")
        if part == "language_model" and not rest.startswith(("model.", "lm_head.")):
            rest = f"model.{rest}"
        parts[part][rest.removeprefix("vision_model.") if part == "vision_tower" else rest] = tensor
    if empty := [part for part, found in parts.items() if not found]:
        raise ValueError(f"{directory} has no tensors of {', '.join(empty)}")
    return parts


def _own_config(model: VisionLanguageModel) -> dict[str, Any]:
    """config.json of our own format, without what both share."""
    return {
        "text_config": {"model_type": OWN_TYPE, OWN_TYPE: model.net.config.to_dict()},
        "vision_config": model.tower.config,
        "vision_feature_layer": model.tower.layer,
        "projector": model.projector.kind,
        "preprocess": model.tower.preprocess,
    }


def _own_tensors(model: VisionLanguageModel) -> dict[str, Tensor]:
    tied = "net.head.weight" if model.net.config.tie_embeddings else None
    return {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items() if n != tied}


def _from_own(
    values: dict[str, Any], directory: Path, dtype: torch.dtype | None, device: torch.device | str, trainable: bool
) -> VisionLanguageModel:
    """From our own format."""
    tensors, parts = read_tensors(directory), {}
    for part in ("net.", "tower.visual.", "projector."):
        parts[part] = {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
    net: GPT = network_of(values["text_config"], parts["net."], directory, dtype, device)
    vision = values["vision_config"]
    cfg = {**vision["vision_cfg"], "timm_model_pretrained": False}  # the weights are here
    tower = build_tower(
        cfg,
        vision["embed_dim"],
        values["vision_feature_layer"],
        vision.get("quick_gelu", False),
        values["preprocess"],
        trainable,
    )
    _load(tower.visual, parts["tower.visual."], "image tower", directory)
    projector = Projector(tower.width, net.config.n_embd, values["projector"])
    _load(projector, parts["projector."], "projector", directory)
    return VisionLanguageModel(net, tower, projector, values["image_token_index"])


def _load(module: VisionTower | Projector, state: Mapping[str, Tensor], what: str, directory: Path) -> None:
    """load_state_dict, in the types of the file.

    Raises:
        ValueError: missing, left-over or misshapen weights, by name.
    """
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:])[:300]
        raise ValueError(f"{directory}: its {what} is another than its config.json describes: {reason}") from None
