"""One validation loss for everybody: python -m benchmarks.validation_loss KIND CHECKPOINT TEXT [NANOGPT].

KIND is ours or nanogpt. The validation split is nanoGPT's: the last tenth of the text's characters. It is cut into
windows of 64 that do not overlap; every character but the first is a target once; the network runs in float32. Prints
{"loss": nats per character, "targets": how many}.
"""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 64
BATCH = 256

Logits = Callable[[Tensor], Tensor]
"""(B, T) ids -> (B, T, V) logits."""


def validation_text(path: Path) -> str:
    """The last tenth."""
    text = path.read_text(encoding="utf-8")
    return text[int(len(text) * 0.9) :]


@torch.no_grad()
def validation_loss(logits_of: Logits, ids: list[int]) -> tuple[float, int]:
    """Mean cross-entropy in nats over all next tokens, and their number."""
    inputs, targets = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    whole = len(inputs) // WINDOW * WINDOW
    pieces = list(zip(inputs[:whole].view(-1, WINDOW).split(BATCH), targets[:whole].view(-1, WINDOW).split(BATCH)))
    if whole < len(inputs):
        pieces.append((inputs[None, whole:], targets[None, whole:]))
    total = 0.0
    for x, y in pieces:
        total += F.cross_entropy(logits_of(x).float().flatten(0, 1), y.flatten(), reduction="sum").item()
    return total / len(targets), len(targets)


def open_ours(checkpoint: Path, text: str) -> tuple[Logits, list[int]]:
    """Of a run directory (its best checkpoint) or a checkpoint."""
    from lightning_gpt.hub import open_model

    network, tokenizer = open_model(checkpoint, dtype=torch.float32)
    return network, tokenizer.encode(text)


def open_nanogpt(checkpoint: Path, text: str, nanogpt: Path) -> tuple[Logits, list[int]]:
    """Of the ckpt.pt that train.py wrote in a clone with data/shakespeare_char prepared."""
    sys.path.insert(0, str(nanogpt))
    from model import GPT, GPTConfig

    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    network = GPT(GPTConfig(**content["model_args"]))
    prefix = "_orig_mod."
    network.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in content["model"].items()})
    network.eval()
    with open(nanogpt / "data/shakespeare_char/meta.pkl", "rb") as file:
        ids_of = pickle.load(file)["stoi"]

    def logits_of(ids: Tensor) -> Tensor:
        return network(ids, ids)[0]  # without targets it returns the last position only

    return logits_of, [ids_of[character] for character in text]


def main() -> None:
    """As the module says."""
    kind, checkpoint, text, *nanogpt = sys.argv[1:]
    characters = validation_text(Path(text))
    if kind == "ours":
        opened = open_ours(Path(checkpoint), characters)
    else:
        opened = open_nanogpt(Path(checkpoint), characters, Path(nanogpt[0]))
    loss, targets = validation_loss(*opened)
    print(json.dumps({"loss": loss, "targets": targets}))


if __name__ == "__main__":
    main()
