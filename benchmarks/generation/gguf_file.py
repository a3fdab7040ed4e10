"""A model directory of a LLaMA or GPT-2 as a GGUF file without vocabulary, for llama.cpp. Needs gguf, safetensors."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LLAMA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2 = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
}


def write_gguf(source: Path, target: Path, kind: str) -> None:
    """Writes the file, whole or not at all.

    Args:
        source: directory with config.json and model.safetensors.
        target: *.gguf.
        kind: F32, BF16 or Q8_0, of the matrices; vectors and positions stay F32.
    """
    import gguf
    from gguf.quants import quantize

    config = json.loads((source / "config.json").read_text())
    temporary = target.with_suffix(".tmp")
    writer = gguf.GGUFWriter(str(temporary), config["model_type"])
    llama = config["model_type"] == "llama"
    if llama:
        heads, width = config["num_attention_heads"], config["hidden_size"]
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(width)
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(heads)
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_rope_dimension_count(width // heads)
    else:
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, numbers in tensors(source, config):
        matrix = numbers.ndim == 2 and not name.startswith("position")
        stored = gguf.GGMLQuantizationType[kind if matrix else "F32"]
        writer.add_tensor(name, quantize(numbers, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(temporary, target)


def tensors(source: Path, config: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Name and numbers of every tensor as llama.cpp has them, float32."""
    from safetensors.numpy import load_file

    names = LLAMA if config["model_type"] == "llama" else GPT2
    for name, numbers in load_file(source / "model.safetensors").items():
        numbers = np.ascontiguousarray(numbers, dtype=np.float32)
        name = name.removeprefix("transformer.")
        if name in WHOLE:
            if not (name == "lm_head.weight" and config["tie_word_embeddings"]):
                yield WHOLE[name], numbers
            continue
        layer, _, rest = name.removeprefix("model.layers.").removeprefix("h.").partition(".")
        part, _, kind = rest.rpartition(".")
        if part not in names:
            continue  # GPT-2's masks
        if names is GPT2 and numbers.ndim == 2:
            numbers = np.ascontiguousarray(numbers.T)  # stored as inputs x outputs
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config["num_attention_heads" if "q_proj" in part else "num_key_value_heads"]
            rows, columns = numbers.shape  # llama.cpp rotates neighbours, transformers halves
            numbers = numbers.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        yield f"blk.{layer}.{names[part]}.{kind}", np.ascontiguousarray(numbers)
