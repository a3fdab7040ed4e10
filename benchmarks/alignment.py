"""SFT and DPO beside trl's trainers at the size of SmolLM2-135M: python -m benchmarks.alignment.

Every measurement is a process of its own, interleaved (ours, trl, ours, trl); rates are real tokens (no filling) of
optimizer steps after the first two, medians over rounds. Same weights, rows, batch size, order of length, precision
(float32 weights, bfloat16 products), AdamW, no dropout. Needs models/smollm2 (`lightning-gpt import`) and
data/instructions, data/preferences/piqa (`python data/preference_sets.py`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe_machine

MODEL = "models/smollm2"
JOBS = ("sft", "dpo", "sft_lora")


def rows_of(job: str, count: int) -> list[dict]:
    """The longest rows up to 1,200 characters, longest first: both sides see the same batches' worth of filling."""
    if job == "dpo":
        lines = Path("data/preferences/piqa/train.jsonl").read_text().splitlines()
    else:
        lines = Path("data/instructions/train.jsonl").read_text().splitlines()
    rows = []
    for row in map(json.loads, lines):
        if "messages" in row:
            row = {"prompt": row["messages"][:1], "completion": row["messages"][1:]}
        rows.append(row)
    chosen = [row for row in rows if len(json.dumps(row)) < 1200]
    return sorted(chosen, key=lambda row: -len(json.dumps(row)))[:count]


def ours(job: str, steps: int, batch: int) -> float:
    """Tokens a second of `lightning-gpt fit`."""
    import yaml

    from lightning_gpt.callbacks.jsonl_logger import read_metrics
    from lightning_gpt.cli import main

    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "rows.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(job, steps * batch)))
        dpo = job == "dpo"
        settings = {
            "run": {"name": "bench", "dir": place, "tensorboard": False},
            "model": {
                "class_path": f"lightning_gpt.tasks.{'DPO' if dpo else 'SFT'}",
                "init_args": {"init_from": MODEL, **({"lora": {"rank": 16}} if "lora" in job else {})},
            },
            "data": {
                "class_path": f"lightning_gpt.data.{'PreferenceData' if dpo else 'InstructionData'}",
                "init_args": {"train": str(path), "batch_size": batch, "max_length": 512},
            },
            "trainer": {
                "accelerator": "cpu",
                "devices": 1,
                "precision": "bf16-mixed",
                "max_steps": steps,
                "log_every_n_steps": 1,
            },
            "samples": {"tokens": 0},
            "curve": {"enabled": False},
            "diagnosis": {"enabled": False},
            "last": {"every_n_minutes": None},
        }
        (Path(place) / "run.yaml").write_text(yaml.safe_dump(settings))
        main(["fit", "-c", str(Path(place) / "run.yaml")])
        rows = read_metrics(Path(place) / "bench" / "version_0" / "metrics.jsonl")
        tokens = [row["progress/tokens"] for row in rows if "progress/tokens" in row]
        rates = [row["speed/tokens_per_second"] for row in rows if "speed/tokens_per_second" in row]
    counts = [after - before for before, after in zip([0, *tokens], tokens)]
    seconds = sum(count / rate for count, rate in zip(counts[2:], rates[2:]))
    return sum(counts[2:]) / seconds


def trl(job: str, steps: int, batch: int) -> float:
    """Tokens a second of trl's trainer."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = Path(MODEL, "chat_template.jinja").read_text()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    clock: list[float] = []

    class Clock(TrainerCallback):
        """Looks at the time after every optimizer step."""

        def on_step_end(self, arguments, state, control, **kwargs):
            clock.append(time.perf_counter())

    common = {
        "use_cpu": True,
        "bf16": True,
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "max_length": 512,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "learning_rate": 1e-5,
    }
    counted: list[int] = []
    data = Dataset.from_list(rows_of(job, steps * batch))
    with tempfile.TemporaryDirectory() as place:
        if job == "dpo":
            from trl import DPOConfig, DPOTrainer

            arguments = DPOConfig(output_dir=place, **common)
            trainer = DPOTrainer(
                model=model,
                ref_model=AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"),
                args=arguments,
                train_dataset=data,
                processing_class=tokenizer,
                callbacks=[Clock()],
            )
        else:
            from trl import SFTConfig, SFTTrainer

            peft = {}
            if "lora" in job:
                from peft import LoraConfig

                layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
                peft = {"peft_config": LoraConfig(r=16, lora_alpha=32, target_modules=layers)}
            arguments = SFTConfig(output_dir=place, **common)
            trainer = SFTTrainer(
                model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()], **peft
            )
        collate = trainer.data_collator

        def counting(examples):
            made = collate(examples)
            counted.append(int(made["attention_mask"].sum()))
            return made

        trainer.data_collator = counting
        trainer.train()
    return sum(counted[2:steps]) / (clock[steps - 1] - clock[1])


def main() -> None:
    """Measures and writes benchmarks/results/alignment.{json,md}."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        side, job = options.worker.split(":")
        rate = {"ours": ours, "trl": trl}[side](job, options.steps, options.batch)
        print(json.dumps({"rate": rate}))
        return
    results = {}
    for job in options.jobs.split(","):
        rates: dict[str, list[float]] = {"ours": [], "trl": []}
        for _ in range(options.rounds):
            for side in rates:
                command = [sys.executable, "-m", "benchmarks.alignment", "--worker", f"{side}:{job}"]
                command += ["--steps", str(options.steps), "--batch", str(options.batch)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr[-2000:])
                rates[side].append(json.loads(done.stdout.strip().splitlines()[-1])["rate"])
                print(f"{job} {side}: {rates[side][-1]:,.0f} tokens/s", flush=True)
        median = {side: statistics.median(values) for side, values in rates.items()}
        results[job] = {"tokens_per_second": rates, "ratio": median["ours"] / median["trl"]}
        print(f"{job}: ours / trl = {results[job]['ratio']:.2f}", flush=True)
    out = Path("benchmarks/results")
    machine = describe_machine()
    content = {
        "command": "python -m benchmarks.alignment",
        "machine": machine,
        "batch": options.batch,
        "results": results,
    }
    (out / "alignment.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = ["| job | ours, tokens/s | trl, tokens/s | ratio |", "|---|---|---|---|"]
    for job, found in results.items():
        each = found["tokens_per_second"]
        cells = [", ".join(f"{rate:,.0f}" for rate in each[side]) for side in ("ours", "trl")]
        lines.append(f"| {job} | {cells[0]} | {cells[1]} | {found['ratio']:.2f} |")
    text = f"# SFT and DPO beside trl\n\n    python -m benchmarks.alignment\n\n{__doc__.partition(chr(10) * 2)[2]}\n"
    text += "\n".join(lines) + f"\n\nMachine: {json.dumps(machine)}\n"
    (out / "alignment.md").write_text(text)


if __name__ == "__main__":
    main()
