"""`lightning-gpt export`, `import` and `upcycle`: between training checkpoints, model directories and Hugging Face
models."""

from typing import TYPE_CHECKING, Literal

from lightning_gpt.nn.moe_config import MoEConfig

if TYPE_CHECKING:
    from lightning_gpt.nn.vision_language import VisionLanguageModel


def export_command(
    model: str,
    out: str,
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    adapter: bool = False,
) -> None:
    """Write a checkpoint or run as a model directory, in Hugging Face format where one exists.

    Adapters are merged into their base; of a reward model the head is written too, of a vision-language model all its
    parts.

    Args:
        model: checkpoint file, run directory (its best checkpoint) or model directory.
        out: directory to write; an older model directory there is replaced.
        dtype: of the stored weights.
        adapter: write the adapters alone, in peft's format, which names their base.
    """
    from pathlib import Path

    import torch

    from lightning_gpt.hub import obstacles, save_model
    from lightning_gpt.hub.checkpoint import export_adapter
    from lightning_gpt.hub.clip_directory import is_clip, open_clip_model, save_clip
    from lightning_gpt.hub.llava import save_llava
    from lightning_gpt.hub.llava_opening import open_any_model
    from lightning_gpt.hub.opening import find_checkpoint
    from lightning_gpt.hub.reward_directory import is_reward_model, load_reward_model, save_reward_model
    from lightning_gpt.nn.flops import parameters

    if adapter:
        path = Path(model)
        export_adapter(find_checkpoint(path) if path.is_dir() else path, out)
        print(f"{model} -> {out} (adapters in peft's format)")
        return
    if Path(model).exists() and is_clip(model):
        save_clip(out, open_clip_model(model))
        print(f"{model} -> {out} (CLIP: open_clip.create_model_from_pretrained('local-dir:{out}') reads it)")
        return
    if Path(model).exists() and is_reward_model(model):
        net, head, tokenizer, scale = load_reward_model(model)
        save_reward_model(out, net, head, tokenizer, scale)
        print(f"{model} -> {out} ({scale.kind} reward model: lightning_gpt.rewards.ModelReward reads it)")
        return
    net, tokenizer, vision = open_any_model(model)
    stored = None if dtype == "stored" else getattr(torch, dtype)
    if vision is not None:
        describe_llava(model, out, vision, save_llava(out, vision, tokenizer, dtype=stored))
        return
    model_type = save_model(out, net, tokenizer, dtype=stored)
    print(f"{model} -> {out} ({parameters(net.config):,} parameters, model_type {model_type})")
    if model_type != "lightning_gpt":
        print(f"transformers reads it: AutoModelForCausalLM.from_pretrained({out!r})")
    else:
        print(f"transformers has no class for {', '.join(obstacles(net.config))}: lightning-gpt alone reads it")


def describe_llava(model: str, out: str, vision: "VisionLanguageModel", model_type: str) -> None:
    """Says what was written, and who reads it."""
    from lightning_gpt.hub.llava import llava_obstacles

    print(f"{model} -> {out} ({sum(p.numel() for p in vision.parameters()):,} parameters, model_type {model_type})")
    if model_type == "llava":
        print(f"transformers reads it: LlavaForConditionalGeneration.from_pretrained({out!r})")
    else:
        print(f"transformers has no class for {', '.join(llava_obstacles(vision))}: lightning-gpt alone reads it")


def import_command(model: str, out: str) -> None:
    """Bring a Hugging Face model (GPT-2, LLaMA, Mistral, Mixtral, Qwen2, Qwen3, SmolLM2, LLaVA) into a model directory,
    checked tensor by tensor.

    Args:
        model: directory that transformers wrote, a *.gguf file (read by transformers, which needs the package gguf), or
            a name on the Hugging Face hub.
        out: directory to write; an older model directory there is replaced.
    """
    from lightning_gpt.hub import save_model
    from lightning_gpt.hub.llava import save_llava
    from lightning_gpt.hub.llava_opening import open_any_model
    from lightning_gpt.nn.flops import parameters

    net, tokenizer, vision = open_any_model(model)
    if vision is not None:
        describe_llava(model, out, vision, save_llava(out, vision, tokenizer))
    else:
        save_model(out, net, tokenizer)
        print(f"{model} -> {out} ({parameters(net.config):,} parameters)")
    if tokenizer is None:
        print("it has no tokenizer: put tokenizer.json into the directory to generate text")


def upcycle_command(model: str, out: str, moe: MoEConfig, noise: float = 0.0, seed: int = 0) -> None:
    """Make a dense model into a mixture of experts that starts from its weights (Komatsuzaki et al., 2023).

    Args:
        model: checkpoint file, run directory or model directory, dense and without biases.
        out: directory to write; train it on with `--model.init_args.init_from` and the same settings.
        moe: the experts; each starts as a copy of the dense feed-forward.
        noise: added to each copy, relative to the deviation of its matrix.
        seed: of routers and noise.
    """
    from lightning_gpt.hub import open_model, save_model
    from lightning_gpt.hub.quantized_directory import refuse_quantized
    from lightning_gpt.hub.upcycle import upcycle
    from lightning_gpt.nn.flops import parameters

    dense, tokenizer = open_model(model)
    refuse_quantized(dense, model)
    net = upcycle(dense, moe, noise, seed)
    save_model(out, net, tokenizer)
    total, active = parameters(net.config), parameters(net.config, active=True)
    print(f"{model} -> {out} ({parameters(dense.config):,} parameters -> {total:,}, {active:,} active)")
