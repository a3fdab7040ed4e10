"""What is generated: networks with random weights as model directories, and prompts."""

import json
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer, models

from lightning_gpt.hub import save_model
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.presets import PRESETS

LLAMA = {"position": "rotary", "norm": "rmsnorm", "norm_eps": 1e-5, "feed_forward": "swiglu", "bias": False}
INIT_STD = 0.1
"""Large weights, so that texts do not repeat one token and differences show."""
NETWORKS = {
    # the size of the table that other engines were compared by: 40.6M parameters
    "llama40m": GPTConfig(vocab_size=4096, block_size=1024, n_layer=12, n_head=8, n_embd=512, ffn_hidden=1408, **LLAMA),
    "smollm2": PRESETS["smollm2-135m"],
    "gpt2": PRESETS["gpt2"],
    "gpt10m": GPTConfig(vocab_size=65, block_size=1024, n_layer=6, n_head=6, n_embd=384),
    "tiny": GPTConfig(vocab_size=128, block_size=256, n_layer=2, n_head=2, n_embd=128, ffn_hidden=256, **LLAMA),
}


@dataclass(frozen=True)
class Workload:
    """Prompts to continue."""

    network: str
    """Of NETWORKS."""
    rows: int
    prompt: tuple[int, int]
    """Least and most tokens of a prompt."""
    new: tuple[int, int]
    """Least and most new tokens of a row."""
    about: str

    @property
    def ragged(self) -> bool:
        """Whether rows differ in length."""
        return self.prompt[0] != self.prompt[1] or self.new[0] != self.new[1]

    def drawn(self) -> tuple[list[list[int]], list[int]]:
        """Prompts and numbers of new tokens, always the same."""
        draw, vocabulary = random.Random(0), NETWORKS[self.network].vocab_size
        prompts = [[draw.randrange(vocabulary) for _ in range(draw.randint(*self.prompt))] for _ in range(self.rows)]
        return prompts, [draw.randint(*self.new) for _ in range(self.rows)]


WORKLOADS = {
    "llama40m": Workload("llama40m", 32, (32, 32), (32, 32), "LLaMA 40M, 32 prompts of 32 tokens, 32 new"),
    "smollm2": Workload("smollm2", 32, (32, 32), (32, 32), "SmolLM2-135M, 32 prompts of 32 tokens, 32 new"),
    "ragged": Workload("llama40m", 64, (8, 128), (8, 64), "LLaMA 40M, 64 prompts of 8 to 128 tokens, 8 to 64 new"),
    "gpt2-1": Workload("gpt2", 1, (64, 64), (128, 128), "GPT-2 124M, one prompt of 64 tokens, 128 new"),
    "gpt2-16": Workload("gpt2", 16, (64, 64), (128, 128), "GPT-2 124M, 16 prompts of 64 tokens, 128 new"),
    "gpt10m-1": Workload("gpt10m", 1, (64, 64), (128, 128), "GPT-2 shape of 10.7M, one prompt of 64 tokens, 128 new"),
    "gpt10m-16": Workload("gpt10m", 16, (64, 64), (128, 128), "GPT-2 shape of 10.7M, 16 prompts of 64, 128 new"),
    "tiny": Workload("tiny", 4, (8, 8), (8, 8), "a tiny LLaMA, to try the harness"),
    "tiny-ragged": Workload("tiny", 6, (4, 12), (4, 12), "a tiny LLaMA, ragged, to try the harness"),
}


def model_directory(name: str, root: Path) -> Path:
    """A network with random weights in Hugging Face's format, with a tokenizer of one word for each id; made unless it
    is there."""
    import torch

    place = root / name
    if not (place / "tokenizer.json").exists():
        torch.manual_seed(0)
        config = replace(NETWORKS[name], init_std=INIT_STD)
        net = GPT(config).eval()
        kind = save_model(place, net, None)
        if kind not in ("llama", "gpt2"):
            raise ValueError(f"{name} is stored as {kind}, which the peers cannot read")
        words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(config.vocab_size)}, unk_token="t0"))
        (place / "tokenizer_config.json").write_text(
            json.dumps(
                {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "bos_token": "t0", "eos_token": "t0"}
            )
        )
        words.save(str(place / "tokenizer.json"))
    return place


def int8_directory(source: Path, head: bool) -> Path:
    """The same with weights and inputs of 8 bits (W8A8), by `lightning-gpt quantize`; made unless it is there.

    Args:
        source: of model_directory.
        head: also the output head, which other engines do not read.
    """
    place = source.with_name(f"{source.name}_w8a8{'_head' if head else ''}")
    if not (place / "config.json").exists():
        command = [sys.executable, "-m", "lightning_gpt", "quantize", str(source), str(place), "--act_bits", "8"]
        subprocess.run([*command, *(["--head"] if head else [])], check=True, stdout=sys.stderr)
    return place
