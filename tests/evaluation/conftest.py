"""What the tests of evaluations share."""

import json

import pytest


class Request:
    """What lm-eval hands to a model."""

    def __init__(self, *args):
        self.args = args
        self.arguments = args
        self.task_name, self.doc_id, self.repeats = "t", 0, 1


@pytest.fixture(scope="session")
def peer(tiny_model):
    """transformers' model of the same directory in lm-eval's own class."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    return HFLM(AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer=tokenizer, device="cpu", max_length=64)


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """A handful of questions of every set, in the columns of the real ones."""
    place = tmp_path_factory.mktemp("sets")
    lettered = [
        {"question": f"{n} or?", "choices": {"text": ["yes", "no no", "may be"], "label": list("ABC")}}
        | {"answerKey": "ABC"[n % 3]}
        for n in range(7)
    ]
    mmlu = [
        {"subject": subject, "question": f"{n}", "choices": ["a", "b", "c", "d"], "answer": n % 4}
        for subject in ("anatomy", "astronomy")
        for n in range(4)
    ]
    rows = {
        "mmlu": mmlu,
        "mmlu.examples": mmlu[1:3] + mmlu[5:7],
        "arc_easy": lettered,
        "arc_challenge": lettered[:3],
        "openbookqa": [{"question_stem": row["question"], **row} for row in lettered[:3]],
        "commonsense_qa": [
            row | {"choices": {"text": list("vwxyz"), "label": list("ABCDE")}} for row in lettered[:3]
        ],
        "hellaswag": [
            {"activity_label": "Run", "ctx_a": "A man [x] runs.", "ctx_b": "he", "endings": ["a", "b", "c d", "e"]}
            | {"label": str(n)}
            for n in range(4)
        ],
        "piqa": [{"goal": f"eat {n}", "sol1": "with a fork", "sol2": "with a foot", "label": n % 2} for n in range(3)],
        "boolq": [{"passage": f"It is {n}.", "question": "is it", "label": n % 2} for n in range(4)],
        "sciq": [
            {"support": " s", "question": f"q{n}", "correct_answer": "r", "distractor1": "x", "distractor2": "y"}
            | {"distractor3": "z"}
            for n in range(3)
        ],
        "winogrande": [
            {"sentence": f"The cat saw the dog so _ {verb}.", "option1": "cat", "option2": "dog", "answer": "2"}
            for verb in ("ran", "sat", "ate")
        ],
        "lambada": [{"text": text} for text in ("in the end", "at the top", "so it is")],
        "gsm8k": [{"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"}] * 2,
        "humaneval": [{"prompt": "def f(x):\n    return x\n", "test": "def check(g):\n    assert g(1) == 1"}
                      | {"entry_point": "f"}],
        "mbpp": [{"task_id": 1, "text": "t", "code": "", "test_list": ["assert False"] * 3, "test_setup_code": ""}],
        "bbq": [
            {"context": f"A and B{'.' * n}", "question": "Who?", "ans0": "A", "ans1": "B", "ans2": "Unknown"}
            | {"label": n % 2, "biased_answers": ["A"], "context_condition": "disambig", "category": "Age"}
            for n in range(1, 5)
        ],
        "toxigen": [{"text": f"you are {word}", "label": 0} for word in ("nice", "kind", "here")],
        "truthfulqa": [{"question": "Is it?", "mc1_targets": {"choices": ["no", "yes"], "labels": [1, 0]}}],
    }  # fmt: skip
    for name, some in rows.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return place
