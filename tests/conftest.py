"""What tests of whole runs share: a tiny prepared corpus, a tiny recipe, and `lightning-gpt` called in this process."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

TEXT = "to be or not to be that is the question whether tis nobler in the mind to suffer the slings and arrows né"

WORDS = ["red", "green", "blue", "seven", "nine", "tree", "river", "stone", "quiet", "loud", "first", "last"]

RECIPE = {
    "run": {"name": "tiny", "tensorboard": False},
    "model": {
        "class_path": "lightning_gpt.tasks.Pretraining",
        "init_args": {
            "config": {"n_layer": 2, "n_head": 2, "n_embd": 32},
            "optimizer": {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 0.01}},
            "schedule": {"class_path": "lightning_gpt.optim.Cosine", "init_args": {"warmup_steps": 2}},
        },
    },
    "data": {
        "class_path": "lightning_gpt.data.TokenData",
        "init_args": {"batch_size": 4, "block_size": 16, "val_batch_size": 16},
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 6,
        "log_every_n_steps": 1,
        "val_check_interval": 3,
    },
    "samples": {"tokens": 0},
    "curve": {"enabled": False},
}
"""A run of some tenths of a second."""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A prepared corpus of 20,000 characters in many short documents: random words, one has a two-byte letter."""
    from lightning_gpt.data.prepare import prepare

    place = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    documents = []
    while sum(map(len, documents)) < 20_000:
        documents.append(" ".join(draw.choices(TEXT.split(), k=draw.randint(2, 20))) + ".\n")
    lines = [json.dumps({"text": text}) + "\n" for text in documents]
    (place / "words.jsonl").write_text("".join(lines), encoding="utf-8")
    prepare(str(place / "words.jsonl"), tokenizer="char", out=str(place / "data"), workers=0)
    return place / "data"


@pytest.fixture
def clean_process(tmp_path, monkeypatch) -> Iterator[None]:
    """A working directory of its own; afterwards signals, environment, generators and process group as before."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    random_state = torch.get_rng_state()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(before)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_rng_state(random_state)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that fork: OpenMP's threads do not survive it, and a child would wait for them for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recipe(tmp_path, corpus) -> Path:
    """RECIPE with the corpus' place as a YAML file."""
    path = tmp_path / "tiny.yaml"
    RECIPE["data"]["init_args"]["data_dir"] = str(corpus)
    path.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return path


@pytest.fixture
def lightning_gpt(clean_process, tmp_path, recipe) -> Callable[..., Path]:
    """lightning_gpt("fit", "--trainer.max_steps", 3): runs the tiny recipe with these options; the run's directory.

    Options are strings, numbers or, for a stacked -c file, dictionaries.
    """
    from lightning_gpt.cli import main

    def run(verb: str, *options: object) -> Path:
        args: list[str] = [verb, "-c", str(recipe)]
        for number, option in enumerate(options):
            if isinstance(option, dict):
                path = tmp_path / f"stacked_{number}.yaml"
                path.write_text(yaml.safe_dump(option), encoding="utf-8")
                args += ["-c", str(path)]
            else:
                args.append(str(option))
        main(args)
        versions = sorted(tmp_path.glob("runs/*/version_*"), key=lambda path: path.stat().st_mtime_ns)
        return versions[-1] if versions else tmp_path

    return run


@pytest.fixture(scope="session")
def studied(tmp_path_factory, corpus) -> Path:
    """Runs of two variants with two seeds each, with event files: <here>/heads_<1 or 4>/seed_<1 or 2>/version_0."""
    from lightning_gpt.cli import main

    place = tmp_path_factory.mktemp("studied")
    before = dict(os.environ)
    for heads in (1, 4):
        for seed in (1, 2):
            settings = json.loads(json.dumps(RECIPE))
            settings["run"] = {"name": f"seed_{seed}", "dir": str(place / f"heads_{heads}"), "tensorboard": True}
            settings["model"]["init_args"]["config"] |= {"n_head": heads, "qk_norm": True}
            settings["data"]["init_args"]["data_dir"] = str(corpus)
            settings["seed_everything"] = seed
            path = place / "recipe.yaml"
            path.write_text(yaml.safe_dump(settings))
            main(["fit", "-c", str(path)])
    os.environ.clear()
    os.environ.update(before)
    return place


@pytest.fixture(scope="session")
def hparams_table() -> Callable[[Path], tuple[dict[str, bool], list[str], dict[str, dict]]]:
    """hparams_table(logdir): what TensorBoard's HPARAMS tab serves for it, asked of the plugin's own back-end.

    Columns (name -> whether it differs), metrics in order, and rows by run: status, hparams, metrics.
    """
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.data.provider import ListHyperparametersResult
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, list_session_groups
    from tensorboard.plugins.hparams.backend_context import Context

    def ask(logdir: Path):
        events = EventMultiplexer().AddRunsFromDirectory(str(logdir))
        events.Reload()
        context = Context(TBContext(data_provider=MultiplexerDataProvider(events, str(logdir))))
        request = RequestContext()
        nothing = ListHyperparametersResult(hyperparameters=[], session_groups=[])
        table = context.experiment_from_metadata(request, "", True, context.hparams_metadata(request, ""), nothing)
        asked = api_pb2.ListSessionGroupsRequest(
            start_index=0, slice_size=100, allowed_statuses=[0, 1, 2, 3], include_metrics=True
        )
        rows = {}
        for group in list_session_groups.Handler(request, context, "", asked).run().session_groups:
            (session,) = group.sessions
            rows[session.name] = {
                "status": api_pb2.Status.Name(session.status),
                "hparams": {k: getattr(v, v.WhichOneof("kind")) for k, v in group.hparams.items()},
                "metrics": {one.name.tag: one.value for one in group.metric_values},
            }
        columns = {info.name: info.differs for info in table.hparam_infos}
        return columns, [info.name.tag for info in table.metric_infos], rows

    return ask


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Random weights of a LLaMA; byte tokens, <|endoftext|>; a context of 64."""
    from lightning_gpt.hub import save_model
    from lightning_gpt.nn import GPT, GPTConfig
    from lightning_gpt.text.byte import byte_tokenizer

    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=257,
        block_size=64,
        n_layer=2,
        n_head=2,
        n_embd=64,
        position="rotary",
        norm="rmsnorm",
        feed_forward="swiglu",
        bias=False,
        tie_embeddings=False,
        init_std=0.2,
    )
    directory = tmp_path_factory.mktemp("tiny") / "model"
    save_model(directory, GPT(config), byte_tokenizer(end_of_text=True))
    return directory


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory) -> Path:
    """Random weights of a LLaVA that transformers reads too; byte tokens, <image>; a context of 96, 4 of them a picture
    of 28 x 28."""
    from lightning_gpt.hub.llava import save_llava
    from lightning_gpt.nn import GPT, GPTConfig
    from lightning_gpt.nn.vision_language import Projector, VisionLanguageModel
    from lightning_gpt.nn.vision_tower import build_tower
    from lightning_gpt.text.byte import byte_tokenizer
    from lightning_gpt.text.special_tokens import with_special_token

    torch.manual_seed(0)
    tokenizer = with_special_token(byte_tokenizer(end_of_text=True), "<image>")
    shape = {"vocab_size": 258, "block_size": 96, "n_layer": 2, "n_head": 4, "n_embd": 48, "bias": False}
    llama = {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "tie_embeddings": False}
    tower = build_tower({"image_size": 28, "patch_size": 14, "width": 32, "head_width": 8, "layers": 3}, 16, -2)
    model = VisionLanguageModel(GPT(GPTConfig(**shape, **llama)), tower, Projector(32, 48), 257)
    with torch.no_grad():
        for parameter in model.parameters():  # so that every part counts
            parameter.add_(torch.randn_like(parameter) * 0.15)
        model.net.head.weight[257] += 10 * model.net.head.weight[:257].abs().max()  # it would love to say <image>
    directory = tmp_path_factory.mktemp("tiny") / "llava"
    save_llava(directory, model, tokenizer)
    return directory


def as_lines(path: Path, rows: list[dict]) -> Path:
    """Rows as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


COLOURS = {
    "red": (230, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 230),
    "black": (5, 5, 5),
    "yellow": (240, 230, 20),
    "grey": (128, 128, 128),
    "purple": (130, 20, 150),
    "orange": (250, 140, 10),
}


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """Two sizes of squares in eight colours with captions and classes: rows.jsonl beside the pictures; talks.jsonl has
    questions about their colours, and some about none, questions.jsonl also about their category."""
    from PIL import Image

    place = tmp_path_factory.mktemp("squares")
    rows, talks, kinds = [], [], []
    for name, colour in COLOURS.items():
        for size in ("small", "large"):
            picture = Image.new("RGB", (16, 16), "white")
            half = 4 if size == "small" else 7
            picture.paste(colour, (8 - half, 8 - half, 8 + half, 8 + half))
            picture.save(place / f"{size}_{name}.png")
            rows.append({"image": f"{size}_{name}.png", "caption": f"a {size} {name} square", "label": name})
            for kind, asked, answer in (("colour", "Colour?", name), ("yes_no", "Is it red?", YES_NO[name == "red"])):
                turns = [{"role": "user", "content": f"<image>{asked}"}, {"role": "assistant", "content": answer}]
                talks.append({"image": f"{size}_{name}.png", "messages": turns, "kind": kind})
        turns = [{"role": "user", "content": "<image>Kind?"}, {"role": "assistant", "content": "square"}]
        kinds.append({"image": f"large_{name}.png", "messages": turns, "kind": "category"})
        turns = [{"role": "user", "content": f"Say {name}"}, {"role": "assistant", "content": name}]
        talks.append({"messages": turns, "kind": "text"})
    as_lines(place / "talks.jsonl", talks)
    as_lines(place / "questions.jsonl", kinds + talks)
    return as_lines(place / "rows.jsonl", rows)


YES_NO = ("no", "yes")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """Random weights of a CLIP that sees 16 pixels as four patches, as a directory."""
    from lightning_gpt.hub.clip_directory import ClipModel, save_clip
    from lightning_gpt.nn.clip import build_clip
    from lightning_gpt.nn.clip_config import ClipConfig, TextConfig, VisionConfig

    torch.manual_seed(0)
    config = ClipConfig(16, VisionConfig(16, 8, 32, 2, 16), TextConfig(8, 300, 32, 2, 1)).to_open_clip()
    directory = tmp_path_factory.mktemp("tiny_clip") / "clip"
    save_clip(directory, ClipModel(build_clip(config).eval(), config, {"size": 16}))
    return directory


@pytest.fixture(scope="session")
def pair_rows(tmp_path_factory) -> Path:
    """40 pairs of answers, the better one longer or shorter by chance."""
    draw = random.Random(1)
    rows = []
    for number in range(40):
        chosen, rejected = (" " + " ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(2))
        rows.append({"prompt": f"{number} {draw.choice(WORDS)}", "chosen": chosen, "rejected": rejected + "!"})
    return as_lines(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture(scope="session")
def answer_rows(tmp_path_factory) -> Path:
    """40 prompts with an answer."""
    draw = random.Random(2)
    rows = [
        {"prompt": f"{number} {draw.choice(WORDS)}:", "completion": " " + " ".join(draw.choices(WORDS, k=3))}
        for number in range(40)
    ]
    return as_lines(tmp_path_factory.mktemp("answers") / "answers.jsonl", rows)


@pytest.fixture
def post_train(clean_process, tmp_path):
    """post_train(task, data, {model settings}, {data settings}, *options): runs `lightning-gpt fit`, gives the run."""
    from lightning_gpt.cli import main

    def run(task: str, data: str, model: dict, rows: dict, *options: object, name: str = "run") -> Path:
        settings = {
            "run": {"name": name, "tensorboard": False, "dir": str(tmp_path / "runs")},
            "model": {
                "class_path": f"lightning_gpt.tasks.{task}",
                "init_args": {
                    "optimizer": {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 3e-3}},
                    **model,
                },
            },
            "data": {"class_path": f"lightning_gpt.data.{data}", "init_args": {"batch_size": 4, **rows}},
            "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 6, "log_every_n_steps": 1},
            "samples": {"tokens": 0},
            "curve": {"enabled": False},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        main(["fit", "-c", str(path), *map(str, options)])
        return sorted((tmp_path / "runs" / name).glob("version_*"), key=lambda p: int(p.name.split("_")[1]))[-1]

    return run


@pytest.fixture(name="as_lines")
def as_lines_fixture() -> Callable[[Path, list[dict]], Path]:
    """as_lines(path, rows): a JSONL file."""
    return as_lines
