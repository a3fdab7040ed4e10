"""Experts that are shared by processes give the losses, gradients and files of one process that has them all."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch.distributed.tensor.debug import CommDebugMode

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.cli import main
from lightning_gpt.hub.checkpoint import read_checkpoint
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.nn.moe import mixtures
from lightning_gpt.optim.muon import Muon
from lightning_gpt.parallel.apply import spread
from lightning_gpt.parallel.expert_balance import balance_over
from lightning_gpt.parallel.expert_parallel import check_experts, lay_out_experts
from lightning_gpt.parallel.gradients import clip_by_norm
from lightning_gpt.parallel.strategies import FullySharded, gradients_unsynced, lay_out

EP = Path(__file__).parents[2] / "configs" / "trainer" / "ep.yaml"
LAST = Path("version_0", "checkpoints", "last.ckpt")
SHAPE = {
    "vocab_size": 37,
    "block_size": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "position": "rotary",
    "norm": "rmsnorm",
    "feed_forward": "swiglu",
    "bias": False,
}
MIXTURES = {
    "switch": {"experts": 4, "top_k": 1, "renormalize": False, "balance_coefficient": 0.1},
    "mixtral": {"experts": 8, "top_k": 2, "expert_hidden": 48, "balance_coefficient": 0.1},
    "deepseek": {"experts": 4, "top_k": 2, "routing": "sigmoid", "balance": "bias", "shared": 1, "dense_first": 1},
    "gelu": {"experts": 4, "top_k": 3, "expert_hidden": 40, "feed_forward": "gelu", "every": 2},
    "idle": {"experts": 4, "top_k": 2, "balance": "bias"},  # the last two get no token: a rank has nothing to do
    "capacity": {"experts": 4, "top_k": 2, "capacity_factor": 0.7, "balance": "none"},
    "choice": {"experts": 4, "routing": "expert_choice", "capacity_factor": 1.5, "balance": "none"},
}
BY_RANK = ("capacity", "choice")
"""What a rank decides by its own tokens, as in data parallelism (GShard's groups)."""

PLACES = {  # replicas, shards of each, ranks that share the experts
    2: {(1, 2, 2): list(MIXTURES)},
    4: {(1, 4, 4): ["switch"], (1, 4, 2): ["mixtral", "gelu", "idle"], (2, 2, 2): ["deepseek"]},
}


def batch(ranks: int, rank: int):
    """This rank's rows of a batch of eight."""
    generator = torch.Generator().manual_seed(3)
    ids, targets = torch.randint(37, (2, 8, 16), generator=generator)
    return ids[rank::ranks], targets[rank::ranks]


def built(name: str) -> GPT:
    torch.manual_seed(0)
    net = GPT(GPTConfig.from_dict({**SHAPE, "moe": MIXTURES[name]}))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for _, mixture in mixtures(net):
            if name == "idle":
                mixture.router.balance_bias_E[2:] = -1e6
    return net


def mean_loss(net: GPT, ids, targets):
    total, count, routers = net.training_loss(ids, targets)
    return total / count + routers


def compared(name: str, replicas: int, shards: int, size: int) -> dict[str, float]:
    """Largest differences between the network on one process and the spread one."""
    whole, net = built(name), built(name)
    net.checkpoint_every = int(name == "gelu")
    ranks, rank = replicas * shards, torch.distributed.get_rank()
    balance_over(net, torch.distributed.group.WORLD)
    meshes = lay_out_experts("cpu", replicas, shards, size)
    spread(net, lay_out("cpu", replicas, shards, 1), True, expert_meshes=meshes)
    held = {p._local_tensor.untyped_storage().nbytes() for _, m in mixtures(net) for p in m.experts.parameters()}
    right = {p.nbytes // ranks * replicas for _, m in mixtures(whole) for p in m.experts.parameters()}
    assert held == right  # no rank keeps the others' experts

    ids, targets = batch(ranks, rank)
    with gradients_unsynced(net):  # a micro-batch of an accumulation
        mean_loss(net, ids, targets).backward()
    loss = mean_loss(net, ids, targets)
    loss.backward()
    torch.distributed.all_reduce(loss.detach_())
    parts = [batch(ranks, r) for r in range(ranks)] if name in BY_RANK else [batch(1, 0)]
    reference = sum(mean_loss(whole, *part) for part in parts) / len(parts)
    (2 * reference).backward()

    worst = {"loss": (loss / ranks / reference - 1).abs().item()}
    largest = max(parameter.grad.abs().max().item() for parameter in whole.parameters())
    for (_, ours), (_, theirs) in zip(net.named_parameters(), whole.named_parameters(), strict=True):
        assert ours.grad.placements == ours.placements
        difference = (ours.grad.full_tensor() - theirs.grad).abs().max().item() / largest
        worst["gradient"] = max(worst.get("gradient", 0), difference)
    norms = [clip_by_norm(list(n.parameters()), 0.5) for n in (net, whole)]
    assert norms[1] > 0.5
    worst["norm"] = (norms[0] / norms[1] - 1).abs().item()

    state, expected = net.state_dict(), whole.state_dict()
    assert state.keys() == expected.keys()
    full = {key: getattr(value, "full_tensor", lambda v=value: v)() for key, value in state.items()}
    worst["file"] = max((full[key] - expected[key]).abs().max().item() for key in expected)
    net.eval(), whole.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        losses = net.loss(ids, targets)[0], whole.loss(ids, targets)[0]
    worst["bf16"] = (losses[0] / losses[1] - 1).abs().item()
    return worst


@pytest.mark.parametrize("count", PLACES)
def test_shared_experts_are_one_process(count, processes):
    def job(rank: int):
        torch.distributed.init_process_group("gloo")
        cases = [(place, name) for place, names in PLACES[count].items() for name in names]
        return {(place, name): compared(name, *place) for place, name in cases}

    for outcome in processes(count, job, timeout=120):
        for case, worst in outcome.value.items():
            for what, difference in worst.items():
                assert difference <= {"file": 0, "bf16": 1e-3}.get(what, 1e-5), (case, what, difference)


def test_tokens_travel_twice_a_layer_and_pass(processes):
    def job(rank: int):
        torch.distributed.init_process_group("gloo")
        net = built("mixtral")
        spread(net, lay_out("cpu", 1, 2, 1), True, expert_meshes=lay_out_experts("cpu", 1, 2, 2))
        with CommDebugMode() as forward:
            loss = mean_loss(net, *batch(2, rank))
        with CommDebugMode() as backward:
            loss.backward()
        stacks = [p for _, mixture in mixtures(net) for p in mixture.experts.parameters()]
        with CommDebugMode() as step:
            Muon(stacks).step()
        return [{str(op): n for op, n in seen.get_comm_counts().items()} for seen in (forward, backward, step)]

    for outcome in processes(2, job):
        forward, backward, step = outcome.value
        assert step == {}  # Newton-Schulz of experts is their rank's
        layers, shardings = SHAPE["n_layer"], SHAPE["n_layer"] + 1
        assert forward == {
            "c10d_functional.all_to_all_single": 2 * layers,
            "c10d._allgather_base_": layers + shardings,  # of the numbers of rows; of dense weights
        }
        assert backward["c10d_functional.all_to_all_single"] == 2 * layers
        assert backward["c10d._reduce_scatter_base_"] == shardings


def recipe_of(corpus, moe: dict, optimizer: str, accumulate: int) -> dict:
    settings = {"lr": 0.01} if optimizer == "AdamW" else {"lr": 0.02, "adam_lr": 0.01, "precision": "fp32"}
    return {
        "model": {
            "class_path": "lightning_gpt.tasks.Pretraining",
            "init_args": {
                "config": {"n_layer": 2, "n_head": 2, "n_embd": 32, "bias": False, "moe": moe},
                "optimizer": {"class_path": f"lightning_gpt.optim.{optimizer}", "init_args": settings},
            },
        },
        "data": {
            "class_path": "lightning_gpt.data.TokenData",
            "init_args": {"data_dir": str(corpus), "block_size": 16, "val_batch_size": 19},
        },
        # A clip value below every gradient norm of these runs.
        "trainer": {
            "max_steps": 4,
            "log_every_n_steps": 1,
            "val_check_interval": 4,
            "gradient_clip_val": 0.3,
            "accumulate_grad_batches": accumulate,
        },
        "run": {"tensorboard": False},
        "samples": {"tokens": 4},
        "curve": {"enabled": False},
        "diagnosis": {"enabled": False},
    }


def command(recipe: dict, place, name: str, devices: int, *more) -> list[str]:
    """`lightning-gpt fit` with a batch of eight shared out to so many processes."""
    settings = json.loads(json.dumps(recipe))
    settings["data"]["init_args"]["batch_size"] = 8 // devices // settings["trainer"]["accumulate_grad_batches"]
    settings["run"] |= {"name": name, "dir": str(place)}
    path = place / f"{name}_{devices}.yaml"
    path.write_text(yaml.safe_dump(settings))
    options = ("--trainer.accelerator", "cpu", "--trainer.devices", str(devices), "--trainer.precision", "32-true")
    return ["fit", "-c", str(path), *map(str, more), *options]


def same_runs(alone: Path, shared: Path) -> None:
    """Metrics and weights of two runs."""
    rows = [read_metrics(run / "version_0" / "metrics.jsonl") for run in (alone, shared)]
    names = set()
    for theirs, ours in zip(*rows, strict=True):
        for name, value in theirs.items():
            if name.startswith(("train/", "val/", "experts/", "optim/gradient_norm", "progress/tokens")):
                assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
                names.add(name)
        assert theirs.get("optim/gradient_norm", 1.0) > 0.3  # clipped
    assert {"train/loss", "optim/gradient_norm", "experts/max_violation", "experts/entropy"} <= names
    states = [read_checkpoint(run / LAST)["state_dict"] for run in (alone, shared)]
    assert states[0].keys() == states[1].keys()
    for name, weights in states[0].items():
        assert (states[1][name] - weights).abs().max() < 1e-4, name


def test_two_processes_train_as_one(corpus, clean_process, processes, tmp_path):
    recipes = {
        "adamw": recipe_of(corpus, {"experts": 4, "expert_hidden": 32, "balance_coefficient": 0.1}, "AdamW", 2),
        "copies": recipe_of(corpus, {"experts": 4, "expert_hidden": 32, "balance_coefficient": 0.1}, "AdamW", 2),
        "muon": recipe_of(corpus, MIXTURES["deepseek"] | {"expert_hidden": 32}, "MuonAdamW", 1),
    }
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir(), shared.mkdir()
    stages = [
        ("adamw",),
        ("muon",),
        ("adamw", "--trainer.strategy.init_args.expert_parallel", 2, "--trainer.max_steps", 6),  # goes on
        ("copies", "--trainer.strategy", "ddp", "--trainer.max_steps", 2),
    ]

    def train(place: Path, devices: int) -> None:
        for name, *settings in stages:
            settings = ["-c", EP, *settings] if devices > 1 else settings[2:]  # the others are the strategy's
            last = place / name / LAST
            if last.exists():
                settings += ["--ckpt_path", last]
            main(command(recipes[name], place, name, devices, *settings))

    processes(2, lambda rank: train(shared, 2), timeout=120)
    train(alone, 1)
    for name in recipes:
        same_runs(alone / name, shared / name)


@pytest.mark.parametrize(
    ("devices", "settings", "told"),
    [
        (2, {"expert_parallel": 0}, r"expert_parallel=0 must be at least 1"),
        (
            2,
            {"expert_parallel": 4},
            r"expert_parallel=4 does not divide the 2 devices of .* use one of 1, 2, or",
        ),
        (4, {"expert_parallel": 4, "shard_size": 2}, r"does not divide the 2 devices of a copy of the network"),
        (
            4,
            {"expert_parallel": 2, "tensor_parallel": 2},
            r"expert_parallel=2 and tensor_parallel=2 do not go together",
        ),
    ],
)
def test_devices_that_cannot_share_are_refused(devices, settings, told):
    with pytest.raises(ValueError, match=told):
        Trainer(accelerator="cpu", devices=devices, strategy=FullySharded(**settings), logger=False)


@pytest.mark.parametrize(
    ("moe", "told"),
    [
        (None, r"expert_parallel=3 needs a network with a mixture of experts: set model.config.moe"),
        ({"experts": 4}, r"expert_parallel=3 does not divide model.config.moe.experts=4: use one of 1, 2, 4"),
    ],
)
def test_networks_that_cannot_be_shared_are_refused(moe, told):
    with pytest.raises(ValueError, match=told):
        check_experts(GPT(GPTConfig.from_dict({**SHAPE, "moe": moe})), 3)


def test_compiled_blocks_are_refused():
    net = built("switch")
    net.blocks[0]._compiled_call_impl = net.blocks[0].forward  # as Module.compile, whose import takes seconds
    with pytest.raises(ValueError, match=r"set model.compile=false, or trainer.strategy.expert_parallel=1"):
        check_experts(net, 2)
