"""Whole losses and gradients, from the rows of a file on, against those of trl's trainers on the same weights."""

import json
from types import SimpleNamespace

import pytest
import torch

from lightning_gpt.data import LabelledData, PreferenceData
from lightning_gpt.hub import open_model, save_model
from lightning_gpt.hub.family import export_tensors
from lightning_gpt.hub.huggingface import family_of
from lightning_gpt.nn.heads import ScalarHead
from lightning_gpt.objectives import preference
from lightning_gpt.objectives.log_probs import token_log_probs
from lightning_gpt.tasks import DPO, GRPO, KTO, RewardModel

ROWS = 12


@pytest.fixture(scope="session")
def moved(tiny_model, tmp_path_factory):
    """A policy that has moved away from its reference, tiny_model."""
    net, tokenizer = open_model(tiny_model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    directory = tmp_path_factory.mktemp("moved") / "model"
    save_model(directory, net, tokenizer)
    return directory


@pytest.fixture(scope="session")
def peer(tiny_model, moved):
    """transformers' policy, reference and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    policy, reference = (AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32) for d in (moved, tiny_model))
    return policy, reference, tokenizer


def settings(path) -> dict:
    return {"output_dir": str(path), "use_cpu": True, "bf16": False, "report_to": [], "max_length": None}


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()][:ROWS]


def ours(task, data, tiny_model, moved):
    """The task with the moved policy and its reference, and a batch of all rows."""
    task.net, tokenizer = open_model(moved)
    task.reference, _ = open_model(tiny_model)
    data.use_model(tokenizer, task.context)
    return data.collate(data.examples("train"))


def gradients(net):
    """Under transformers' names."""
    named = {name: parameter.grad for name, parameter in net.named_parameters()}
    return export_tensors(family_of(net.config), net.config, named)


@pytest.fixture(scope="session")
def trl_dpo(peer, pair_rows, tmp_path_factory):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, reference, tokenizer = peer
    arguments = DPOConfig(**settings(tmp_path_factory.mktemp("dpo")), gradient_checkpointing=False)
    rows = Dataset.from_list(rows_of(pair_rows))
    trainer = DPOTrainer(
        model=policy, ref_model=reference, args=arguments, train_dataset=rows, processing_class=tokenizer
    )
    return trainer, trainer.data_collator([trainer.train_dataset[row] for row in range(ROWS)])


@pytest.mark.parametrize(
    ("name", "loss", "smoothing"),
    [
        ("sigmoid", preference.Sigmoid(beta=0.3), 0.0),
        ("hinge", preference.Hinge(beta=0.3), 0.0),
        ("ipo", preference.IPO(beta=0.3), 0.0),
        ("robust", preference.Robust(beta=0.3, label_smoothing=0.2), 0.2),
    ],
)
def test_dpo_losses_and_gradients(trl_dpo, pair_rows, tiny_model, moved, name, loss, smoothing):
    trainer, batch = trl_dpo
    trainer.loss_types, trainer.loss_weights = [name], [1.0]
    trainer.beta, trainer.label_smoothing = 0.3, smoothing
    trainer.model.zero_grad()
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    task = DPO(init_from=str(tiny_model), loss=loss)
    data = PreferenceData(str(pair_rows), limit=ROWS)
    pair, _ = task.pair_log_probs(ours(task, data, tiny_model, moved), "train")
    value = task.loss(pair).mean()
    value.backward()
    assert abs(value.item() - expected.item()) < 2e-6 * max(1, abs(expected.item()))
    theirs = {n.removeprefix("module."): p.grad for n, p in trainer.model.named_parameters()}
    found = gradients(task.net)
    assert found.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for key, gradient in theirs.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-5 * largest, rtol=1e-4)
    assert all(parameter.grad is None for parameter in task.reference.parameters())


def test_losses_without_a_reference():
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer, log1mexp

    torch.manual_seed(0)
    chosen, rejected = -torch.rand(2, 9) * 3 - 0.01
    pair = preference.PairLogProbs(chosen, rejected)
    about = {"beta": 1.7, "alpha": 0.0, "label_smoothing": 0.0, "accelerator": SimpleNamespace(device="cpu")}
    simpo = CPOTrainer.cpo_loss(SimpleNamespace(**about, loss_type="simpo", simpo_gamma=0.6), chosen, rejected)[0]
    torch.testing.assert_close(preference.SimPO(1.7, 0.6)(pair), simpo)
    ratio = ORPOTrainer.odds_ratio_loss(SimpleNamespace(**about), chosen, rejected)[0]
    torch.testing.assert_close(preference.ORPO(1.7)(pair), -chosen - ratio)
    x = torch.tensor([-1e-6, -0.1, -0.69, -0.7, -5.0, -50.0], dtype=torch.float64)
    torch.testing.assert_close(preference.log1mexp(x), log1mexp(x))


def test_kto_loss(peer, pair_rows, tiny_model, moved, tmp_path):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    policy, reference, tokenizer = peer
    rows = [
        {"prompt": row["prompt"], "completion": row[answer], "label": answer == "chosen"}
        for row in rows_of(pair_rows)
        for answer in ("chosen", "rejected")
    ]
    arguments = KTOConfig(
        **settings(tmp_path), desirable_weight=1.3, undesirable_weight=0.8, beta=0.2, per_device_train_batch_size=24
    )
    trainer = KTOTrainer(
        model=policy,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(rows))])
    expected = trainer.compute_loss(trainer.model, batch)

    task = KTO(str(tiny_model), beta=0.2, desirable_weight=1.3, undesirable_weight=0.8)
    own = ours(task, LabelledData(str(pair_rows), limit=ROWS), tiny_model, moved)
    # which prompt gets whose answer for the baseline is each library's own choice: take theirs
    ids, mask = batch["KL_input_ids"], batch["KL_completion_mask"]
    own["mismatched_input_ids"] = ids[:, :-1]
    own["mismatched_targets"] = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    task.trainer = SimpleNamespace(world_size=1)
    losses, _, baseline = task.losses(own)
    assert float(baseline) >= 0
    assert abs(losses.mean().item() - expected.item()) < 1e-6


def test_reward_loss(moved, pair_rows, tiny_model, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # no token of these rows
    model = AutoModelForSequenceClassification.from_pretrained(moved, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = 0
    rows = Dataset.from_list([row | {"margin": 0.1 * number} for number, row in enumerate(rows_of(pair_rows))])
    arguments = RewardConfig(**settings(tmp_path), center_rewards_coefficient=0.02)
    trainer = RewardTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(ROWS)])
    expected = trainer.compute_loss(trainer.model, dict(batch))

    task = RewardModel(str(tiny_model), centering=0.02)
    task.head = ScalarHead(64)
    with torch.no_grad():
        task.head.weight.copy_(model.score.weight)
    path = tmp_path / "margins.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ours(task, PreferenceData(str(path)), tiny_model, moved)
    from lightning_gpt.objectives.reward import pairwise_loss

    chosen, rejected = task.rewards(own)
    found = pairwise_loss(chosen, rejected, own["margins"], 0.02).mean()
    assert abs(found.item() - expected.item()) < 1e-6


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(("kind", "normalization"), [("grpo", "answer"), ("bnpo", "token"), ("dr_grpo", "constant")])
def test_grpo_loss(peer, tiny_model, moved, tmp_path, kind, normalization, corrected):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    policy, _, tokenizer = peer
    plain = {name: value for name, value in settings(tmp_path).items() if name != "max_length"}
    arguments = GRPOConfig(
        **plain,
        beta=0.3,
        epsilon=0.1,
        epsilon_high=0.2,
        loss_type=kind,
        use_bias_correction_kl=corrected,
        max_completion_length=10,
        num_generations=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 8),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(1)
    ids = torch.randint(1, 250, (4, 16))
    lengths = torch.tensor([10, 3, 7, 1])
    mask = (torch.arange(10) < lengths[:, None]).long()
    advantages = torch.randn(4)
    task = GRPO(
        str(tiny_model),
        reward=len,
        beta=0.3,
        correct_kl=corrected,
        clip=0.1,
        clip_high=0.2,
        normalization=normalization,
        max_new_tokens=10,
    )
    task.net, _ = open_model(moved)
    targets = ids[:, 1:].clone()
    targets[:, :5] = -100
    targets[:, 5:][mask == 0] = -100
    with torch.no_grad():
        now = token_log_probs(task.net(ids[:, :-1]), targets)
        old = now + 0.15 * torch.randn_like(now) * (targets != -100)
        reference = now + 0.3 * torch.randn_like(now) * (targets != -100)
    inputs = {
        "prompt_ids": ids[:, :6],
        "prompt_mask": torch.ones(4, 6, dtype=torch.long),
        "completion_ids": ids[:, 6:],
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old[:, 5:],
        "ref_per_token_logps": reference[:, 5:],
        "num_items_in_batch": mask.sum(),
    }
    expected = trainer._compute_loss(trainer.model, inputs)
    part = {
        "input_ids": ids[:, :-1],
        "targets": targets,
        "advantages": advantages[:, None],
        "log_probs": old,
        "reference_log_probs": reference,
    }
    found = task.loss(part, task.count(part).float())
    assert abs(found.item() - expected.item()) < 2e-6
