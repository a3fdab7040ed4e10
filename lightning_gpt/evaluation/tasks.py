"""The evaluations by name: which of lm-eval's definitions, which file, how many examples, which number counts."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_gpt.evaluation.definitions import read_definition, returned_literal, with_rows

MAKE = "python data/evaluation_sets.py"
CODE_STOPS = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
"""Where a function that a model writes is over (Chen et al., 2021)."""
MBPP_ASKED = (
    "You are an expert Python programmer, and here is your task: {{text}} Your code should pass these tests:\n\n"
    "{{test_list[0]}}\n{{test_list[1]}}\n{{test_list[2]}}\n[BEGIN]\n"
)


@dataclass(frozen=True)
class Evaluation:
    """How one set is asked and scored."""

    name: str
    metric: str
    """The number that a table shows; a metric of lm-eval's, or pass@1."""
    about: str
    fields: tuple[str, ...]
    """Columns that a row of <name>.jsonl must have."""
    definition: str | None = None
    """lm-eval's file below its tasks; {} stands for the subject. None = programs, whose scoring is ours."""
    chance: float | None = None
    """What guessing reaches."""
    shots: int = 0
    """Examples before a question, unless another number is asked for."""
    examples_given: bool = False
    """The definition brings its own examples."""
    fixed_shots: bool = False
    """Another number of examples makes no sense."""
    filter: str = "none"
    """Which of lm-eval's readings of an answer counts."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What differs from lm-eval's definition, because the columns do."""
    source: str = MAKE
    """How its data are had."""

    @property
    def code(self) -> bool:
        """Programs are executed."""
        return self.definition is None


def _programs(name: str, chat: bool) -> dict[str, Any]:
    """humaneval and mbpp as lm-eval asks them (humaneval_instruct in a conversation). Their scoring there fetches code
    from the hub; ours is code_execution.py."""
    common = {
        "task": name,
        "output_type": "generate_until",
        "metric_list": [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}],
    }
    if name == "mbpp":
        examples = returned_literal("mbpp/utils.py", "list_fewshot_samples")
        return common | {
            "doc_to_text": MBPP_ASKED,
            "doc_to_target": "{% if is_fewshot is defined %}{{code}}\n[DONE]{% else %}{{code}}{% endif %}",
            "target_delimiter": "",
            "fewshot_config": {"sampler": "first_n", "samples": examples},
            "generation_kwargs": {"until": ["[DONE]"], "do_sample": False, "max_gen_toks": 256},
        }
    asked = {"doc_to_text": "{{prompt}}"}
    if chat:
        asked = {
            "doc_to_text": "Write a solution to the following problem and make sure that it passes the tests:\n"
            "```python\n{{ prompt }}\n```\n",
            "gen_prefix": "Here is the completed function:\n```python\n{{ prompt }}\n",
        }
    return (
        common
        | asked
        | {
            "doc_to_target": "{{test}}\ncheck({{entry_point}})",
            "generation_kwargs": {"until": CODE_STOPS, "do_sample": False, "max_gen_toks": 1024},
        }
    )


LABELLED = ("question", "choices", "answerKey")
EVALUATIONS = {
    one.name: one
    for one in (
        Evaluation(
            "mmlu",
            "acc",
            "knowledge of 57 subjects (Hendrycks et al., 2021)",
            ("subject", "question", "choices", "answer"),
            "mmlu/default/mmlu_{}.yaml",
            0.25,
            shots=5,
        ),
        Evaluation(
            "hellaswag",
            "acc_norm",
            "which ending follows (Zellers et al., 2019), validation",
            ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
            "hellaswag/hellaswag.yaml",
            0.25,
        ),
        Evaluation(
            "arc_easy", "acc_norm", "school science (Clark et al., 2018), test", LABELLED, "arc/arc_easy.yaml", 0.25
        ),
        Evaluation(
            "arc_challenge",
            "acc_norm",
            "school science, the hard part, test",
            LABELLED,
            "arc/arc_challenge.yaml",
            0.25,
        ),
        Evaluation(
            "openbookqa",
            "acc_norm",
            "science with common sense (Mihaylov et al., 2018), test",
            ("question_stem", "choices", "answerKey"),
            "openbookqa/openbookqa.yaml",
            0.25,
        ),
        Evaluation(
            "commonsense_qa",
            "acc",
            "common sense (Talmor et al., 2019), validation",
            LABELLED,
            "commonsense_qa/default.yaml",
            0.2,
        ),
        Evaluation(
            "piqa",
            "acc_norm",
            "physical common sense (Bisk et al., 2020), validation",
            ("goal", "sol1", "sol2", "label"),
            "piqa/piqa.yaml",
            0.5,
        ),
        Evaluation(
            "boolq",
            "acc",
            "yes or no about a passage (Clark et al., 2019), validation",
            ("passage", "question", "label"),
            "super_glue/boolq/default.yaml",
            0.5,
        ),
        Evaluation(
            "sciq",
            "acc_norm",
            "science with a passage (Welbl et al., 2017), validation",
            ("support", "question", "correct_answer", "distractor1", "distractor2", "distractor3"),
            "sciq/sciq.yaml",
            0.25,
        ),
        Evaluation(
            "winogrande",
            "acc",
            "whom a gap means (Sakaguchi et al., 2020), validation",
            ("sentence", "option1", "option2", "answer"),
            "winogrande/default.yaml",
            0.5,
        ),
        Evaluation(
            "lambada",
            "acc",
            "the last word of a passage (Paperno et al., 2016), OpenAI's test",
            ("text",),
            "lambada/lambada_openai.yaml",
        ),
        Evaluation(
            "gsm8k",
            "exact_match",
            "word problems, test (Cobbe et al., 2021) behind the examples of Wei et al. (2022)",
            ("question", "answer"),
            "gsm8k/gsm8k-cot.yaml",
            shots=8,
            examples_given=True,
            filter="flexible-extract",
        ),
        Evaluation(
            "humaneval",
            "pass@1",
            "Python functions, executed (Chen et al., 2021)",
            ("prompt", "test", "entry_point"),
            fixed_shots=True,
        ),
        Evaluation(
            "mbpp",
            "pass@1",
            "short Python programs, executed (Austin et al., 2021), test",
            ("text", "code", "test_list"),
            shots=3,
            examples_given=True,
        ),
        Evaluation(
            "bbq",
            "acc",
            "questions with a stereotype at hand and the answer in the text, 300 (Parrish et al., 2022)",
            ("context", "question", "ans0", "ans1", "ans2", "label", "biased_answers", "context_condition", "category"),
            "bbq/bbq_multiple_choice.yaml",
            changes={"process_docs": None},
        ),
        Evaluation(
            "toxigen",
            "acc",
            "is a statement hateful, 200 (Hartvigsen et al., 2022)",
            ("text", "label"),
            "toxigen/toxigen.yaml",
            0.5,
            changes={"doc_to_target": "label"},
        ),
        Evaluation(
            "truthfulqa",
            "acc",
            "questions that invite a common error, the best of several answers (Lin et al., 2022)",
            ("question", "mc1_targets"),
            "truthfulqa/truthfulqa_mc1.yaml",
            fixed_shots=True,
            source=f"{MAKE} --hub truthfulqa, where the Hugging Face hub can be reached: no package carries them",
        ),
    )
}


@dataclass(frozen=True)
class Questions:
    """An evaluation with its data."""

    evaluation: Evaluation
    rows: list[dict]
    examples: list[dict] | None
    shots: int
    limit: int | None = None
    """Only so many questions, whatever else is said."""

    def configs(self, chosen: list[int], chat: bool, samples: int = 1) -> tuple[list[dict], dict[str, list[int]]]:
        """lm-eval's task configurations, and which of each one's rows are asked.

        Args:
            chosen: indices of rows.
            chat: asked in a conversation.
            samples: programs drawn for each problem.
        """
        one = self.evaluation
        if one.code:
            config = with_rows(_programs(one.name, chat), self.rows, None, self.shots)
            if samples > 1:
                drawn = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
                config |= {"repeats": samples, "generation_kwargs": config["generation_kwargs"] | drawn}
            return [config], {one.name: chosen}
        if "{}" not in one.definition:
            definition = read_definition(one.definition) | one.changes | {"task": one.name}
            return [with_rows(definition, self.rows, self.examples, self.shots)], {one.name: chosen}
        configs, asked = [], {}
        for subject in sorted({self.rows[index]["subject"] for index in chosen}):
            mine = [index for index, row in enumerate(self.rows) if row["subject"] == subject]
            examples = [row for row in self.examples or [] if row["subject"] == subject]
            definition = read_definition(one.definition.format(subject)) | one.changes
            if 0 < len(examples) < self.shots:
                raise ValueError(f"num_fewshot={self.shots} is more than the {len(examples)} examples of {subject}")
            configs.append(with_rows(definition, [self.rows[index] for index in mine], examples, self.shots))
            wanted = set(chosen)
            asked[definition["task"]] = [place for place, index in enumerate(mine) if index in wanted]
        return configs, asked


def find_evaluations(names: str, data: Path, num_fewshot: int | None = None) -> list[Questions]:
    """The evaluations of a comma-separated list, with their data.

    Args:
        names: of EVALUATIONS; gsm8k:100 asks only so many questions.
        data: directory with <name>.jsonl, and <name>.examples.jsonl for few-shot examples.
        num_fewshot: examples before each question; None = as usual for each.

    Raises:
        ValueError: an unknown name (the nearest is given), data that are not there (how to have them) or have other
            columns, too many examples.
    """
    found = []
    for part in [part.strip() for part in names.split(",") if part.strip()]:
        name, colon, number = part.partition(":")
        if colon and not (number.isdecimal() and int(number) > 0):
            raise ValueError(f"tasks={part}: what follows the colon must be a number of questions, at least 1")
        if name not in EVALUATIONS:
            near = difflib.get_close_matches(name, EVALUATIONS, n=1)
            meant = f", did you mean {near[0]}?" if near else "."
            raise ValueError(f"tasks={name} is unknown{meant} There are {', '.join(EVALUATIONS)}")
        one = EVALUATIONS[name]
        rows = _read(data / f"{name}.jsonl", one)
        others = data / f"{name}.examples.jsonl"
        examples = _read(others, one) if others.exists() else None
        shots = one.shots if num_fewshot is None or one.fixed_shots else num_fewshot
        most = 10_000 if one.definition and "{}" in one.definition else len(examples or rows[1:])
        most = {"gsm8k": 8, "mbpp": 3}[name] if one.examples_given else most
        if not 0 <= shots <= most:
            raise ValueError(f"num_fewshot={shots} must be from 0 to {most}, the examples that {name} has")
        found.append(Questions(one, rows, examples, shots, int(number) if colon else None))
    if not found:
        raise ValueError(f"tasks is empty: name some of {', '.join(EVALUATIONS)}")
    return found


def _read(path: Path, one: Evaluation) -> list[dict]:
    if not path.exists():
        raise ValueError(f"tasks={one.name}: {path} is not there; to have it: {one.source}")
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        lacking = [name for row in rows for name in one.fields if name not in row]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no JSONL file of rows ({error}); to have it: {one.source}") from None
    if lacking or not rows:
        what = f"rows without {lacking[0]}" if lacking else "no rows"
        raise ValueError(f"{path} has {what}: it is damaged or from an older program; to have it anew: {one.source}")
    return rows
