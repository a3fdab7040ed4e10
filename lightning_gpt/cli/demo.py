"""`lightning-gpt demo`: the main job from text to sample, in about two minutes."""

import sys
from pathlib import Path

CONFIG = Path("configs/pretrain/shakespeare.yaml")
DATA = Path("data/shakespeare")


def trainer_file() -> tuple[Path, list[str]]:
    """The trainer file for this machine, and what it needs beside."""
    import torch

    if torch.cuda.is_available():
        return Path("configs/trainer/one_gpu.yaml"), []
    cpu = Path("configs/trainer/cpu.yaml")
    fast_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return cpu, [] if fast_bf16 else ["--trainer.precision", "32-true"]


def demo_command(max_steps: int | None = None) -> None:
    """Prepares Shakespeare, trains a small GPT on it, shows the curve and a sample.

    Args:
        max_steps: optimizer steps instead of the configuration's.
    """
    import yaml

    from lightning_gpt.cli.generate import generate_command
    from lightning_gpt.cli.training import run_training
    from lightning_gpt.data.baseline import corpus_baseline
    from lightning_gpt.data.prepare import prepare

    if not CONFIG.exists():
        raise FileNotFoundError(f"{CONFIG} is not here: run the demo in the root of the repository")
    prepare("shakespeare", "bpe:1024", out=str(DATA))
    counted = corpus_baseline(DATA)
    trainer, extra = trainer_file()
    steps = [] if max_steps is None else ["--trainer.max_steps", str(max_steps)]
    cli = run_training("fit", ["-c", str(CONFIG), "-c", str(trainer), *extra, *steps])
    directory = cli.run.directory(cli.version)
    bits = float(cli.trainer.callback_metrics["val/bits_per_byte"])
    width = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]["config"]["n_embd"]
    print(
        f"\nvalidation, bits per byte: {bits:.3f}   (counting pairs of tokens, the bigram baseline: "
        f"{counted.bits_per_byte(counted.bigram):.3f}; single tokens: {counted.bits_per_byte(counted.unigram):.3f})"
        f"\nloss curve:  {directory / 'loss.png'}   samples while it learned: {directory / 'samples.txt'}\n"
    )
    sys.stdout.flush()
    generate_command(str(directory), prompt="KING HENRY.\n", max_new_tokens=150, temperature=0.8)
    print(
        f"\n\nNow try:\n"
        f"  lightning-gpt generate {directory} --prompt 'To be, or not' --temperature 0.7\n"
        f"  lightning-gpt export {directory} models/shakespeare      # loads in transformers\n"
        f"  lightning-gpt fit -c {CONFIG} -c {trainer} --model.init_args.config.n_embd {2 * width} --run.name wider\n"
        f"  tensorboard --logdir runs"
    )
