"""The evaluations by name, as tasks of lm-evaluation-harness over files; wording as in its own definitions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MAKE = "python data/evaluation_sets.py"


@dataclass(frozen=True)
class Evaluation:
    """How one set is asked and scored."""

    name: str
    kind: Literal["choice", "continuation", "gap", "number", "code"]
    metric: str
    """The one that a table shows."""
    about: str
    source: str = MAKE
    """How its data are had."""
    chance: float | None = None
    """What guessing reaches."""
    max_new_tokens: int = 256

    def config(self, data: Path) -> dict[str, Any]:
        """lm-eval's description of the task.

        Args:
            data: directory with <name>.jsonl.
        """
        common = {
            "task": self.name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data / f"{self.name}.jsonl")}},
            "test_split": "test",
            "num_fewshot": 0,
            "metadata": {"version": 1.0},
        }
        asked = "{{shots|default('')}}{{query}}"
        accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
        if self.kind == "choice":
            metrics = [accuracy] + ([accuracy | {"metric": "acc_norm"}] if self.metric == "acc_norm" else [])
            return common | {
                "output_type": "multiple_choice",
                "doc_to_text": asked,
                "doc_to_choice": "choices",
                "doc_to_target": "gold",
                "metric_list": metrics,
            }
        if self.kind == "gap":
            return common | {
                "output_type": "multiple_choice",
                "doc_to_text": "{{gold}}",
                "doc_to_choice": "queries",
                "doc_to_target": "target",
                "target_delimiter": "",
                "metric_list": [accuracy],
            }
        if self.kind == "continuation":
            return common | {
                "output_type": "loglikelihood",
                "doc_to_text": asked,
                "doc_to_target": "target",
                "target_delimiter": "",
                "metric_list": [accuracy],
            }
        until = (
            ["Question:", "\n\n"] if self.kind == "number" else ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "[DONE]"]
        )
        text = {"number": asked, "code": "{{prompt}}"}[self.kind]
        if self.name == "mbpp":
            text = (
                '"""\n{{text}}\n{{test_list[0]}}\n"""\n'  # the docstring form of Austin et al. (2021) without examples
            )
            until = ["\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|"]
        return common | {
            "output_type": "generate_until",
            "doc_to_text": text,
            "doc_to_target": "{{answer|default('')}}",
            "generation_kwargs": {"until": until, "do_sample": False, "max_gen_toks": self.max_new_tokens},
            "metric_list": [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}],
        }


EVALUATIONS = {
    one.name: one
    for one in (
        Evaluation(
            "mmlu", "choice", "acc", "knowledge of 57 subjects, five examples (Hendrycks et al., 2021)", chance=0.25
        ),
        Evaluation("hellaswag", "choice", "acc_norm", "which ending follows (Zellers et al., 2019)", chance=0.25),
        Evaluation("arc_easy", "choice", "acc_norm", "school science (Clark et al., 2018)", chance=0.25),
        Evaluation("arc_challenge", "choice", "acc_norm", "school science, the hard part", chance=0.25),
        Evaluation(
            "openbookqa", "choice", "acc_norm", "science with common sense (Mihaylov et al., 2018)", chance=0.25
        ),
        Evaluation("commonsense_qa", "choice", "acc", "common sense (Talmor et al., 2019)", chance=0.2),
        Evaluation("piqa", "choice", "acc_norm", "physical common sense (Bisk et al., 2020)", chance=0.5),
        Evaluation("boolq", "choice", "acc", "yes or no about a passage (Clark et al., 2019)", chance=0.5),
        Evaluation("sciq", "choice", "acc_norm", "science with a passage (Welbl et al., 2017)", chance=0.25),
        Evaluation("winogrande", "gap", "acc", "whom a pronoun means (Sakaguchi et al., 2020)", chance=0.5),
        Evaluation("lambada", "continuation", "acc", "the last word of a passage (Paperno et al., 2016)"),
        Evaluation("gsm8k", "number", "exact_match", "word problems, four examples (Cobbe et al., 2021)"),
        Evaluation("humaneval", "code", "pass@1", "Python functions, executed (Chen et al., 2021)", max_new_tokens=384),
        Evaluation("mbpp", "code", "pass@1", "short Python programs, executed (Austin et al., 2021)"),
        Evaluation(
            "bbq", "choice", "acc", "questions with a stereotype at hand, 300 (Parrish et al., 2022)", chance=1 / 3
        ),
        Evaluation("toxigen", "choice", "acc", "is a statement hateful, 200 (Hartvigsen et al., 2022)", chance=0.5),
        Evaluation(
            "truthfulqa",
            "choice",
            "acc",
            "questions that invite a common error (Lin et al., 2022)",
            source="the data ask not to be trained on and are in no package: write {query, choices, gold} rows of the "
            "hub's truthfulqa/truthful_qa",
        ),
    )
}


def find_evaluations(names: str, data: Path) -> list[Evaluation]:
    """The evaluations of a comma-separated list.

    Raises:
        ValueError: an unknown name (the nearest is given), or one whose data are not there: how to have them.
    """
    import difflib

    found = []
    for name in [part.strip() for part in names.split(",") if part.strip()]:
        if name not in EVALUATIONS:
            near = difflib.get_close_matches(name, EVALUATIONS, n=1)
            meant = f", did you mean {near[0]}?" if near else ""
            raise ValueError(f"tasks={name} is unknown{meant} There are {', '.join(EVALUATIONS)}")
        if not (data / f"{name}.jsonl").exists():
            raise ValueError(f"tasks={name}: {data / name}.jsonl is not there; to have it: {EVALUATIONS[name].source}")
        found.append(EVALUATIONS[name])
    if not found:
        raise ValueError(f"tasks is empty: name some of {', '.join(EVALUATIONS)}")
    return found
