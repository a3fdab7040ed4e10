"""PPO, GRPO, RLOO and online DPO as runs of the command line; where all texts can be listed, against the optimum."""

import pytest
import torch
from planted_reward import Planted

from lightning_gpt.callbacks.jsonl_logger import read_metrics
from lightning_gpt.hub import open_model, save_model
from lightning_gpt.hub.checkpoint import read_checkpoint
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.objectives.enumeration import all_texts, best_policy, kl_divergence, text_log_probs
from lightning_gpt.text.char import char_tokenizer

LETTERS = "abcdef"
LENGTH = 4
STEADY = {"schedule": {"class_path": "lightning_gpt.optim.Constant"}}
PLANTED = {"class_path": "planted_reward.Planted"}


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """A language model over six letters, and prompts of one letter: 1,296 answers of four letters."""
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=6, block_size=8, n_layer=1, n_head=2, n_embd=32, position="rotary", init_std=0.1)
    place = tmp_path_factory.mktemp("world")
    save_model(place / "model", GPT(config), char_tokenizer(LETTERS))
    (place / "prompts.jsonl").write_text('{"prompt": "a"}\n' * 256)
    return place


def column(run, key) -> list[float]:
    return [row[key] for row in read_metrics(run / "metrics.jsonl") if key in row]


def exact(net):
    """log p of every answer behind the prompt."""
    with torch.no_grad():
        return text_log_probs(lambda ids: net(ids), 0, all_texts(6, LENGTH)).double()


def planted_rewards():
    texts = ["".join(LETTERS[i] for i in row) for row in all_texts(6, LENGTH).tolist()]
    return torch.tensor(Planted()([""] * len(texts), texts), dtype=torch.float64)


FIXED = {"class_path": "lightning_gpt.objectives.kl.FixedKL", "init_args": {"beta": 0.5}}
PLAIN = {"kl_estimator": "k2", "advantage": "centred", "normalization": "constant"}


@pytest.mark.parametrize(
    ("task", "model", "steps", "allowed"),
    [
        ("PPO", {"kl": FIXED, "epochs": 4}, 240, 0.08),
        ("GRPO", {"beta": 0.5, "answers": 64, **PLAIN}, 100, 0.08),
        ("RLOO", {"beta": 0.5, "answers": 64}, 100, 0.08),
    ],
)
def test_the_optimum_under_a_kl_penalty_is_reached(post_train, small_world, task, model, steps, allowed):
    """J = E[reward] - beta KL, exactly, against the best that any policy can have."""
    reference = exact(open_model(small_world / "model")[0])
    rewards = planted_rewards()

    def objective(log_p):
        return float(log_p.exp() @ rewards - 0.5 * kl_divergence(log_p, reference))

    best, start = objective(best_policy(reference, rewards, 0.5)), objective(reference)
    rows = {"train": str(small_world / "prompts.jsonl"), "batch_size": 256 if task == "PPO" else 4}
    run = post_train(
        task,
        "PromptData",
        {"init_from": str(small_world / "model"), "reward": PLANTED, "max_new_tokens": LENGTH, **model},
        rows,
        f"--trainer.max_steps={steps}",
        "--model.optimizer.lr=0.005",
    )
    reached = objective(exact(open_model(run)[0]))
    assert best - start > 0.5
    assert best - reached < allowed, (task, start, reached, best)


@pytest.mark.parametrize("adapters", [{}, {"lora": {"rank": 4}}], ids=["full", "lora"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_nothing_has_moved_before_the_first_update(post_train, tiny_model, pair_rows, adapters, precision):
    run = post_train(
        "PPO",
        "PromptData",
        {
            "init_from": str(tiny_model),
            "reward": "planted_reward.distinct",
            "max_new_tokens": 8,
            "epochs": 1,
            **adapters,
        },
        {"train": str(pair_rows), "val": str(pair_rows), "val_limit": 5},
        f"--trainer.precision={precision}",
        "--best.monitor=val/score",
    )
    assert column(run, "val/ratio") == [1.0] * 6 and column(run, "policy/approxkl_avg") == [0.0] * 6
    assert column(run, "objective/kl")[0] == pytest.approx(0, abs=1e-6) and column(run, "objective/kl")[-1] != 0
    names = set().union(*read_metrics(run / "metrics.jsonl"))
    assert {
        "objective/entropy", "objective/scores", "objective/non_score_reward", "objective/rlhf_reward",
        "objective/kl_coef", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg",
        "val/clipfrac_avg", "val/explained_variance", "val/num_eos_tokens", "val/score", "val/kl",
    } <= names  # fmt: skip
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert not [key for key in state if key.startswith("reference.")] and "value_head.weight" in state


ALGORITHMS = {
    "PPO": {
        "epochs": 2,
        "minibatches": 2,
        "micro_batch_size": 1,
        "kl": {"class_path": "lightning_gpt.objectives.kl.AdaptiveKL", "init_args": {"horizon": 10, "target": 0.5}},
    },
    "PPO_separate": {"critic": "separate", "whiten_rewards": True, "missing_end_penalty": 1.0, "epochs": 2},
    "GRPO": {"answers": 2, "epochs": 2, "minibatches": 2},
    "RLOO": {"answers": 4},
    "OnlineDPO": {},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_resume_equals_an_undisturbed_run(post_train, tiny_model, pair_rows, name):
    model = {"init_from": str(tiny_model), "reward": PLANTED, "max_new_tokens": 8, **ALGORITHMS[name], **STEADY}
    task, rows = name.split("_")[0], {"train": str(pair_rows)}
    whole = post_train(task, "PromptData", model, rows, "--trainer.max_steps=8", name="whole")
    half = post_train(task, "PromptData", model, rows, "--trainer.max_steps=4")
    half = post_train(
        task, "PromptData", model, rows, "--trainer.max_steps=8", "--ckpt_path", half / "checkpoints" / "last.ckpt"
    )
    one, other = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, half))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(tensor, other["state_dict"][key]) for key, tensor in one["state_dict"].items())
    logged = [[row for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row] for run in (whole, half)]
    expected, found = (
        [{k: v for k, v in r.items() if not k.startswith(("speed", "memory"))} for r in rows] for rows in logged
    )
    assert found == expected
    if name == "PPO":
        assert len(set(column(whole, "objective/kl_coef"))) > 1  # the coefficient moved, and came back with the run


@pytest.mark.parametrize("name", ["PPO", "GRPO"])
def test_two_processes_are_one(post_train, tiny_model, pair_rows, one_thread, name):
    model = {"init_from": str(tiny_model), "reward": PLANTED, "max_new_tokens": 8, **STEADY, "epochs": 2}
    found = []
    for world in (1, 2):
        run = post_train(
            name,
            "PromptData",
            model,
            {"train": str(pair_rows), "batch_size": 4 // world},
            f"--trainer.devices={world}",
            f"--trainer.strategy={'auto' if world == 1 else 'ddp_fork'}",
            "--trainer.max_steps=6",
            name=f"world_{world}",
        )
        rows = [row for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row]
        keys = [key for key in rows[0] if not key.startswith(("speed", "memory", "val/num", "val/explained"))]
        found.append(([[row[key] for key in keys] for row in rows], read_checkpoint(run / "checkpoints/last.ckpt")))
    torch.testing.assert_close(torch.tensor(found[0][0]), torch.tensor(found[1][0]), rtol=2e-3, atol=2e-4)
    for key, tensor in found[0][1]["state_dict"].items():
        torch.testing.assert_close(found[1][1]["state_dict"][key], tensor, rtol=1e-3, atol=1e-4)


def test_answers_do_not_depend_on_the_batch(tiny_model):
    from lightning_gpt.inference import SamplingConfig
    from lightning_gpt.tasks.rollout import draw_answers

    net, tokenizer = open_model(tiny_model)
    prompts = [tokenizer.encode(text) for text in ("hello", "a", "some longer text")]
    arguments = (12, SamplingConfig())
    together = draw_answers(net, tokenizer, prompts, *arguments, [5, 6, 7], tokenizer.end_ids)
    for row, prompt in enumerate(prompts):
        alone = draw_answers(net, tokenizer, [prompt], *arguments, [5 + row], tokenizer.end_ids)
        assert alone.tokens[0] == together.tokens[row]
    lengths = [len(row) for row in together.tokens]
    assert together.lengths.tolist() == lengths
    kept = together.targets[2][together.targets[2] >= 0].tolist()
    assert kept == together.tokens[2]


def test_a_critic_can_start_from_a_reward_model(post_train, tiny_model, pair_rows):
    base = {"init_from": str(tiny_model)}
    reward = post_train("RewardModel", "PreferenceData", base, {"train": str(pair_rows)}, name="reward")
    kept = str(reward / "checkpoints" / "last.ckpt")
    scored = {"class_path": "lightning_gpt.rewards.ModelReward", "init_args": {"path": kept}}
    model = base | {"reward": scored, "max_new_tokens": 8, "critic": "separate", "critic_from": kept}
    run = post_train("PPO", "PromptData", model, {"train": str(pair_rows)})
    state, learnt = (read_checkpoint(path)["state_dict"] for path in (run / "checkpoints/last.ckpt", kept))
    assert any(key.startswith("critic.") for key in state)
    moved = (state["value_head.weight"] - learnt["head.weight"]).abs().max()
    assert 0 < moved < 0.1  # it began there


def test_a_negative_kl_is_explained(tiny_model):
    from lightning_gpt.inference import SamplingConfig
    from lightning_gpt.tasks import PPO

    task = PPO(str(tiny_model), Planted(), sampling=SamplingConfig(top_k=5))
    with pytest.warns(UserWarning, match="below zero: top_k=5 keep out tokens that the policy would draw"):
        task._warn_of_negative_kl(-2.0)
    task = PPO(str(tiny_model), Planted())
    with pytest.warns(UserWarning, match="is dropout on, or the network not causal"):
        task._warn_of_negative_kl(-2.0)


def test_early_stop_leaves_updates_out(post_train, tiny_model, pair_rows):
    model = {"init_from": str(tiny_model), "reward": PLANTED, "max_new_tokens": 8, "epochs": 5, "stop_at_kl": 1e-9}
    run = post_train("PPO", "PromptData", model, {"train": str(pair_rows)})
    # the first update of an iteration moves nothing yet, the second has moved too far
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["lightning_gpt"]["iteration"] == 3


@pytest.mark.parametrize(
    ("task", "model", "options", "words"),
    [
        ("PPO", {"reward": "planted_reward.broken"}, (), "the reward broken is nan for row 1, prompt"),
        ("PPO", {"reward": "planted_reward.short"}, (), "gave 3 numbers for 4 answers"),
        ("PPO", {"sampling": {"temperature": 0}}, (), "model.sampling.temperature=0"),
        ("PPO", {"max_new_tokens": 64}, (), "model.max_new_tokens=64 leaves no room for a prompt"),
        ("PPO", {"minibatches": 3}, (), "model.minibatches=3 does not divide the 4 answers"),
        ("PPO", {"critic_from": "x"}, (), "set model.critic=separate"),
        ("PPO", {}, ("--trainer.accumulate_grad_batches=2",), "trainer.accumulate_grad_batches has no meaning here"),
        ("GRPO", {"answers": 1}, (), "model.answers=1"),
        ("PPO", {"reward": {"class_path": "lightning_gpt.rewards.RegexVerifier"}}, (), "is no column of the data"),
    ],
)
def test_bad_input_stops_before_the_update(post_train, tiny_model, pair_rows, capsys, task, model, options, words):
    settings = {"init_from": str(tiny_model), "reward": PLANTED, "max_new_tokens": 8, **model}
    with pytest.raises(SystemExit):
        post_train(task, "PromptData", settings, {"train": str(pair_rows)}, *options)
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_verifiable_answers_are_learnt(post_train, tiny_model, as_lines, tmp_path):
    """GRPO with a verifier: of four letters the asked one is right."""
    rows = [{"prompt": f"say {letter}: ", "answer": letter} for letter in "wxyz"] * 8
    path = as_lines(tmp_path / "tasks.jsonl", rows)
    verifier = {"class_path": "lightning_gpt.rewards.RegexVerifier", "init_args": {"pattern": "^(.)"}}
    model = {"init_from": str(tiny_model), "max_new_tokens": 1, "answers": 16, "beta": 0.0}
    taught = as_lines(
        tmp_path / "sft.jsonl",
        [{"prompt": row["prompt"], "completion": letter} for row in rows[:4] for letter in "wxyz"],
    )
    # At a higher rate the policy may say one letter to all before it has learnt.
    slow = {"optimizer": {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 1e-3}}}
    warm = post_train(
        "SFT",
        "InstructionData",
        {"init_from": str(tiny_model)},
        {"train": str(taught)},
        "--trainer.max_steps=60",
        name="warm",
    )
    run = post_train(
        "GRPO",
        "PromptData",
        model | {"init_from": str(warm), "reward": verifier} | slow,
        {"train": str(path), "val": str(path), "val_limit": 4},
        "--trainer.max_steps=100",
        "--best.monitor=val/score",
        "--best.mode=max",
    )
    rewards = column(run, "reward")
    assert rewards[0] < 0.4 and sum(rewards[-10:]) / 10 > 0.5
    assert not column(run, "kl")  # beta is 0
