"""Two or four processes are one process on the same global batch, whatever they are spread by."""

import json
import os
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch import Callback, Trainer

from lightning_gpt.callbacks import TrainingMetrics
from lightning_gpt.data import InstructionData, LabelledData, PreferenceData, TokenData
from lightning_gpt.hub.adapters import LoRA
from lightning_gpt.nn import GPTConfig
from lightning_gpt.optim import AdamW, MuonAdamW
from lightning_gpt.parallel import FullySharded, TensorParallel
from lightning_gpt.tasks import DPO, KTO, SFT, Pretraining, RewardModel

GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32}
LLAMA = GPT2 | {
    "n_kv_head": 2,
    "position": "rotary",
    "norm": "rmsnorm",
    "feed_forward": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
CLIP = 0.2
"""Below every gradient norm of these runs."""
STEPS = 3
TOLERANCE = 5e-6
"""Of losses and gradient norms, relative; of weights that have moved by 1e-2, absolute. Sums in another order differ by
1e-6 at most here."""
# An epsilon that is not lost beside second moments of gradients that are nothing but rounding.
ADAM = {"eps": 1e-5}

CASES: dict[str, tuple[int, int, Callable, list[str]]] = {
    # processes, of them with data of their own, strategy, recipes
    "ddp": (2, 2, lambda: "ddp", ["gpt2", "llama", "sft", "kto"]),
    "fsdp": (2, 2, FullySharded, ["gpt2", "llama", "muon", "sft", "kto", "reward", "lora"]),
    "tp": (2, 1, TensorParallel, ["gpt2", "llama", "muon", "sft", "dpo", "reward"]),
    "fsdp_tp": (4, 2, lambda: FullySharded(tensor_parallel=2), ["gpt2", "muon", "sft"]),
    "hsdp": (4, 4, lambda: FullySharded(shard_size=2), ["gpt2", "value_skip"]),
}
DIFFERS = ("kto",)
"""Its answers are compared with others of the same micro-batch: sharing it out changes the loss. It has to end."""


class Run(NamedTuple):
    """What a run has logged."""

    steps: torch.Tensor
    """A row a step: loss, gradient norm before clipping, tokens seen."""
    validation: dict[str, float]
    weights: dict[str, torch.Tensor]
    """Whole, on the first rank."""


class Recorded(Callback):
    """Takes down what makes a Run."""

    def __init__(self, metrics: TrainingMetrics) -> None:
        self.metrics, self.steps, self.weights = metrics, [], {}
        self.validation: dict[str, float] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        names = ("train/loss", "optim/gradient_norm", "progress/tokens")
        if len(self.steps) < trainer.global_step:
            self.steps.append([float(self.metrics.latest[name]) for name in names])

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validation = {name: float(value) for name, value in trainer.callback_metrics.items() if "val/" in name}

    def on_fit_end(self, trainer, pl_module) -> None:
        self.weights = trainer.strategy.lightning_module_state_dict()


def recipes(corpus, model, rows):
    """By name: (accumulation, a task and its data for batches of so many rows); global batches of eight."""

    def pretraining(config, optimizer, **more):
        def make(batch_size):
            # 19 validation windows a batch: the last ones of two ranks and of one are filled up unevenly
            windows = {"batch_size": batch_size, "block_size": 16, "val_batch_size": 19, "documents": "separate"}
            data = TokenData(str(corpus), **windows)
            shape = GPTConfig(vocab_size=data.vocab_size, block_size=16, **config, **more)
            return Pretraining(shape, optimizer()), data

        return make

    def tuned(task, data, name, **settings):
        def make(batch_size):
            train, val = rows / f"{name}.jsonl", rows / f"{name}_val.jsonl"
            adam = AdamW(lr=0.003, **ADAM)
            return (
                task(str(model), optimizer=adam, **settings),
                data(str(train), val=str(val), batch_size=batch_size, val_batch_size=1),
            )

        return make

    def adam():
        return AdamW(lr=0.01, **ADAM)

    def muon():
        return MuonAdamW(adam_lr=0.01, adam_eps=ADAM["eps"], precision="fp32")

    return {
        "gpt2": (1, pretraining(GPT2, adam)),
        "value_skip": (2, pretraining(GPT2, adam, value_skip=True)),
        "llama": (2, pretraining(LLAMA, adam)),
        "muon": (1, pretraining(LLAMA, muon)),
        "sft": (2, tuned(SFT, InstructionData, "answers")),
        "lora": (1, tuned(SFT, InstructionData, "answers", lora=LoRA(rank=4, alpha=8))),
        "kto": (1, tuned(KTO, LabelledData, "labelled")),
        "dpo": (1, tuned(DPO, PreferenceData, "pairs")),
        "reward": (1, tuned(RewardModel, PreferenceData, "pairs")),
    }


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Examples of unequal length, so that ranks and micro-batches have unequal numbers of targets; one to validate, so
    that all ranks but the first have none."""
    place, draw = tmp_path_factory.mktemp("rows"), random.Random(2)
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    answers = [
        {"prompt": f"{n}:", "completion": " " + " ".join(draw.choices(words, k=draw.randint(1, 9)))} for n in range(33)
    ]
    kinds = {
        "answers": answers,
        "pairs": [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " none"} for row in answers],
        "labelled": [row | {"label": n % 3 > 0} for n, row in enumerate(answers)],
    }
    for name, some in kinds.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some[:32]))
        (place / f"{name}_val.jsonl").write_text(json.dumps(some[32]) + "\n")
    return place


def run(recipe, ranks: int, devices: int, strategy) -> Run:
    """Trains in this process, one of so many."""
    accumulate, make = recipe
    seed_everything(1, verbose=False)
    task, data = make(8 // ranks // accumulate)
    metrics = TrainingMetrics()
    recorded = Recorded(metrics)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_steps=STEPS,
        max_epochs=-1,
        log_every_n_steps=1,
        check_val_every_n_epoch=None,
        val_check_interval=STEPS * accumulate,
        num_sanity_val_steps=0,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=CLIP,
        use_distributed_sampler=False,
        callbacks=[metrics, recorded],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    return Run(torch.tensor(recorded.steps).double(), recorded.validation, recorded.weights)


@pytest.fixture(scope="session")
def alone(corpus, tiny_model, rows):
    """What one process has recorded of every recipe."""
    before, threads = dict(os.environ), torch.get_num_threads()
    torch.set_num_threads(1)
    found = {name: run(recipe, 1, 1, "auto") for name, recipe in recipes(corpus, tiny_model, rows).items()}
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)
    return found


@pytest.mark.parametrize("case", CASES)
def test_many_processes_are_one(case, alone, processes, corpus, tiny_model, rows):
    devices, ranks, strategy, names = CASES[case]
    known = recipes(corpus, tiny_model, rows)
    outcomes = processes(
        devices, lambda rank: {name: run(known[name], ranks, devices, strategy()) for name in names}, timeout=180
    )
    for name in names:
        one, many = alone[name], [outcome.value[name] for outcome in outcomes]
        assert all(other.validation == many[0].validation for other in many), name
        ours, theirs = many[0].steps, one.steps
        assert torch.equal(ours[:, 2], theirs[:, 2]), f"{name}: tokens seen"
        if name in DIFFERS:
            continue
        assert theirs[:, 1].min() > CLIP
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=0)
        assert many[0].validation == pytest.approx(one.validation, rel=TOLERANCE), name
        assert many[0].weights.keys() == one.weights.keys()
        for key, weight in one.weights.items():
            difference = (many[0].weights[key] - weight).abs().max().item()
            assert difference <= TOLERANCE, (name, key)
