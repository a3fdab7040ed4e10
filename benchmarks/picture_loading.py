"""Do pictures come as fast as CLIP learns from them?

    python -m benchmarks.picture_loading       # after python data/emoji_pictures.py

Pairs a second of the loader alone (opening, augmenting and tokenising; the first epoch opens files, later ones have the
opened pictures in memory) by number of worker processes, beside whole training steps of configs/clip/emoji.yaml on one
ready batch. Writes benchmarks/results/picture_loading.{json,md}.
"""

import time
from pathlib import Path

import torch
import yaml

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import markdown_table, write_report
from lightning_gpt.data import ImageTextData
from lightning_gpt.nn.clip import build_clip, quick_attention
from lightning_gpt.nn.clip_config import ClipConfig, TextConfig, VisionConfig
from lightning_gpt.objectives.contrastive import info_nce
from lightning_gpt.text.caption_tokenizer import ClipBPE

CONFIG = Path("configs/clip/emoji.yaml")
OUT = Path("benchmarks/results/picture_loading.json")
STEPS = 8


def loading(settings: dict, size: int, context: int, workers: int) -> list[float]:
    """Pairs a second of the first and the third epoch."""
    data = ImageTextData(**{**settings, "num_workers": workers}, seed=1)
    data.use_towers(ClipBPE(context), {"size": size})
    loader, rates = data.train_dataloader(), []
    for _ in range(3):
        begin, pairs = time.perf_counter(), 0
        for batch in loader:
            pairs += len(batch["index"])
        rates.append(pairs / (time.perf_counter() - begin))
    return [rates[0], rates[2]]


def training(network: ClipConfig, batch_size: int) -> float:
    """Pairs a second of forward, backward and AdamW in bfloat16 on one ready batch."""
    torch.manual_seed(0)
    net = build_clip(network.to_open_clip())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    side = network.vision_cfg.image_size
    images = torch.randn(batch_size, 3, side, side)
    texts = torch.randint(1, 49000, (batch_size, network.text_cfg.context_length))
    for step in range(STEPS + 2):
        if step == 2:
            begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16), quick_attention(torch.device("cpu")):
            features = net.encode_image(images, normalize=True), net.encode_text(texts, normalize=True)
        optimizer.zero_grad()
        info_nce(*features, net.logit_scale.exp()).backward()
        optimizer.step()
    return batch_size * STEPS / (time.perf_counter() - begin)


def main() -> None:
    """Measures and writes the table."""
    config = yaml.safe_load(CONFIG.read_text())
    settings, shape = config["data"]["init_args"], config["model"]["init_args"]["network"]
    vision, text = VisionConfig(**shape["vision_cfg"]), TextConfig(**shape["text_cfg"])
    network = ClipConfig(shape["embed_dim"], vision, text)
    machine, batch_size = describe_machine(), settings["batch_size"]
    rates = {workers: loading(settings, vision.image_size, text.context_length, workers) for workers in (0, 1, 2)}
    rate = training(network, batch_size)
    rows = [[str(workers), f"{first:,.0f}", f"{later:,.0f}"] for workers, (first, later) in rates.items()]
    table = markdown_table(["worker processes", "pairs/s, first epoch", "pairs/s, third epoch"], rows)
    markdown = (
        f"# {__doc__.splitlines()[0]}\n\n    python -m benchmarks.picture_loading\n\n{machine_line(machine)}. A "
        f"training step alone, on a ready batch of {batch_size}: {rate:,.0f} pairs/s in bfloat16. "
        f"The loader alone:\n\n{table}"
    )
    write_report(OUT, {"machine": machine, "loading": rates, "training": rate, "batch_size": batch_size}, markdown)


if __name__ == "__main__":
    main()
