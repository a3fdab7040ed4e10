import gguf
import numpy as np
import pytest
import torch

from lightning_gpt.cli import main
from lightning_gpt.hub import open_model

SHAPE = {"layers": 2, "heads": 4, "kv_heads": 2, "width": 32, "hidden": 48}


def write_llama(path, arch="llama", without=""):
    """A random LLaMA with a byte-level tokenizer of 259 ids, as llama.cpp's converter lays it out."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, "to", "be", "<|endoftext|>"]
    draw = np.random.default_rng(0)
    C, F = SHAPE["width"], SHAPE["hidden"]
    KV = C // SHAPE["heads"] * SHAPE["kv_heads"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(C)
    writer.add_block_count(SHAPE["layers"])
    writer.add_feed_forward_length(F)
    writer.add_head_count(SHAPE["heads"])
    writer.add_head_count_kv(SHAPE["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(["t o", "b e"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    shapes = {"token_embd": (len(tokens), C), "output": (len(tokens), C), "output_norm": (C,)}
    for layer in range(SHAPE["layers"]):
        parts = {
            "attn_norm": (C,), "attn_q": (C, C), "attn_k": (KV, C), "attn_v": (KV, C), "attn_output": (C, C),
            "ffn_norm": (C,), "ffn_gate": (F, C), "ffn_up": (F, C), "ffn_down": (C, F),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    for name, shape in shapes.items():
        if name != without:
            writer.add_tensor(f"{name}.weight", draw.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_becomes_the_model_that_transformers_reads(tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    path = write_llama(tmp_path / "tiny.gguf")
    main(["import", str(path), "--out", str(tmp_path / "model")])
    shown = capsys.readouterr()
    assert "parameters)" in shown.out
    assert "%|" not in shown.err  # no bars where nobody watches
    net, tokenizer = open_model(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    ids = tokenizer.encode("to be or not to be")
    assert tokenizer.decode(ids) == "to be or not to be"
    assert len(ids) < len("to be or not to be")
    with torch.no_grad():
        torch.testing.assert_close(net(torch.tensor([ids])), theirs(torch.tensor([ids])).logits, atol=1e-5, rtol=1e-4)
    expected = theirs.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    from lightning_gpt.inference.generation import generate
    from lightning_gpt.inference.sampling import SamplingConfig

    made = generate(net, [ids], 8, SamplingConfig(temperature=0.0))[0]
    assert made == expected[: len(made)]


def test_a_tensor_that_is_not_there_is_named(tmp_path, capsys):
    path = write_llama(tmp_path / "tiny.gguf", without="blk.1.ffn_up")
    with pytest.raises(SystemExit) as stop:
        main(["import", str(path), "--out", str(tmp_path / "model")])
    assert stop.value.code == 2
    assert "lacks tensor(s) model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not a model", "cannot be read"), (None, "does not exist")],
)
def test_what_is_no_such_file_is_refused_in_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "tiny.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["import", str(path), "--out", str(tmp_path / "model")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
