"""The two worlds of frontier.py: one that can be enumerated, and Shakespeare's speeches."""

import json
import math
import random
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import yaml

from lightning_gpt.cli import main as lightning_gpt
from lightning_gpt.hub import open_model, save_model
from lightning_gpt.nn import GPT, GPTConfig
from lightning_gpt.objectives import enumeration
from lightning_gpt.objectives.log_probs import token_log_probs
from lightning_gpt.text.char import char_tokenizer

FIXED, ADAPTIVE = "lightning_gpt.objectives.kl.FixedKL", "lightning_gpt.objectives.kl.AdaptiveKL"
LOSSES = "lightning_gpt.objectives.preference."


@dataclass(frozen=True, eq=False)
class Point:
    """A method at one strength of its penalty."""

    method: str
    knob: str
    task: str
    data: str
    model: dict
    steps: int
    rate: float
    batch: int = 32

    @property
    def label(self) -> str:
        """Method and knob."""
        return f"{self.method} {self.knob}"


class Exact:
    """Texts of four letters out of six and an end: 1,296 of them, each with a planted reward."""

    name, letters, length, prompt = "exact", "abcdef", 4, "a"
    question = (
        "Which reward do PPO, GRPO, DPO, IPO and best-of-n reach at which KL divergence, against the best possible?"
    )
    seeds, precision, reference = (1, 2, 3), "32-true", "runs/frontier/exact/reference"
    place = Path("runs/frontier/exact")
    reward_label, kl_label = "expected reward", "KL divergence from the reference, nats"

    @property
    def points(self) -> list[Point]:
        """Three strengths of every method; an answer that is no text of the world is worth -1."""
        table = {
            "class_path": "lightning_gpt.rewards.TableReward",
            "init_args": {"path": str(self.place / "rewards.json"), "default": -1.0},
        }
        drawn = {"reward": table, "max_new_tokens": self.length + 1}
        warm = {"schedule": {"class_path": "lightning_gpt.optim.Linear", "init_args": {"warmup_steps": 30}}}
        plain = {"kl_estimator": "k2", "advantage": "centred", "normalization": "constant"}
        found = []
        for beta in (1.0, 0.5, 0.25):
            kl = {"class_path": FIXED, "init_args": {"beta": beta}}
            ppo = {"kl": kl, "epochs": 4, **drawn, **warm}
            grpo = {"beta": beta, "answers": 64, **plain, **drawn, **warm}
            loss = {"class_path": LOSSES + "Sigmoid", "init_args": {"beta": beta}}
            found.append(Point("PPO", f"beta {beta}", "PPO", "PromptData", ppo, 600, 1e-3, 512))
            found.append(Point("GRPO", f"beta {beta}", "GRPO", "PromptData", grpo, 500, 1.5e-3, 8))
            found.append(Point("DPO", f"beta {beta}", "DPO", "PreferenceData", {"loss": loss}, 300, 1e-3, 128))
        for beta in (0.2, 0.1, 0.05):
            loss = {"class_path": LOSSES + "IPO", "init_args": {"beta": beta, "average": False}}
            found.append(Point("IPO", f"beta {beta}", "DPO", "PreferenceData", {"loss": loss}, 300, 1e-3, 128))
        return found

    def optimizer(self, point: Point) -> dict:
        """AdamW."""
        return {
            "class_path": "lightning_gpt.optim.AdamW",
            "init_args": {"lr": point.rate, "betas": [0.9, 0.95], "weight_decay": 0.0},
        }

    def data(self, point: Point) -> dict:
        """Prompts, or pairs."""
        source = "prompts" if point.data == "PromptData" else "pairs"
        return {"train": str(self.place / f"{source}.jsonl"), "batch_size": point.batch}

    def prepare(self) -> None:
        """The rewards, a reference that ends after four letters, and pairs of its texts with drawn labels."""
        draw = random.Random(13)
        weight = {one + other: draw.gauss(0, 0.7) for one in self.letters for other in self.letters}
        self.texts = enumeration.all_texts(len(self.letters), self.length)
        written = ["".join(self.letters[i] for i in row) for row in self.texts.tolist()]
        self.rewards = torch.tensor([sum(weight[a + b] for a, b in pairwise(t)) for t in written], dtype=torch.float64)
        self.place.mkdir(parents=True, exist_ok=True)
        (self.place / "rewards.json").write_text(json.dumps(dict(zip(written, self.rewards.tolist()))))
        if not (self.place / "reference").exists():
            torch.manual_seed(0)
            config = GPTConfig(vocab_size=7, block_size=8, n_layer=2, n_head=2, n_embd=64, position="rotary")
            save_model(self.place / "begin", GPT(config), char_tokenizer(self.letters, end_of_text=True))
            likelier = [draw.random() + 0.2 for _ in written]
            rows = [{"prompt": self.prompt, "completion": text} for text in draw.choices(written, likelier, k=8000)]
            self._lines("texts", rows)
            options = {
                "run": {"name": "sft", "dir": str(self.place), "tensorboard": False},
                "model": {
                    "class_path": "lightning_gpt.tasks.SFT",
                    "init_args": {
                        "init_from": str(self.place / "begin"),
                        "optimizer": {"class_path": "lightning_gpt.optim.AdamW", "init_args": {"lr": 3e-3}},
                    },
                },
                "data": {
                    "class_path": "lightning_gpt.data.InstructionData",
                    "init_args": {"train": str(self.place / "texts.jsonl"), "batch_size": 128},
                },
                "trainer": {"max_steps": 400, "accelerator": "cpu", "devices": 1},
                "samples": {"tokens": 0},
                "curve": {"enabled": False},
            }
            (self.place / "sft.yaml").write_text(yaml.safe_dump(options))
            lightning_gpt(["fit", "-c", str(self.place / "sft.yaml")])
            lightning_gpt(["export", str(self.place / "sft"), str(self.place / "reference")])
        self.log_reference, self.outside = self._log_probs(self.place / "reference")
        if not (self.place / "pairs.jsonl").exists():
            p = self.log_reference.exp()
            generator = torch.Generator().manual_seed(1)
            both = torch.multinomial(p, 16_000, replacement=True, generator=generator).view(-1, 2)
            difference = self.rewards[both[:, 0]] - self.rewards[both[:, 1]]
            first = torch.rand(len(both), generator=generator, dtype=torch.float64) < torch.sigmoid(difference)
            rows = [
                {"prompt": self.prompt, "chosen": written[a if win else b], "rejected": written[b if win else a]}
                for (a, b), win in zip(both.tolist(), first.tolist())
                if a != b
            ]
            self._lines("pairs", rows)
            self._lines("prompts", [{"prompt": self.prompt}] * 512)

    def _lines(self, name: str, rows: list[dict]) -> None:
        (self.place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def _log_probs(self, path: Path) -> tuple[torch.Tensor, float]:
        """Of the 1,296 texts with their end, among themselves; and what probability lies outside them."""
        net, tokenizer = open_model(path)
        start = tokenizer.encode(self.prompt)[0]
        ids = torch.tensor([tokenizer.encode(letter)[0] for letter in self.letters])[self.texts]
        rows = torch.cat(
            (torch.full_like(ids[:, :1], start), ids, torch.full_like(ids[:, :1], tokenizer.eos_id)), dim=1
        )
        with torch.inference_mode():
            log_p = token_log_probs(net(rows[:, :-1]), rows[:, 1:]).sum(-1).double()
        return torch.log_softmax(log_p, -1), float(1 - log_p.exp().sum())

    def measure(self, checkpoint: Path) -> dict[str, float]:
        """Exactly."""
        log_p, outside = self._log_probs(checkpoint)
        kl, reward = float(enumeration.kl_divergence(log_p, self.log_reference)), float(log_p.exp() @ self.rewards)
        best = enumeration.best_reward_at(self.log_reference, self.rewards, kl)
        return {"kl": kl, "reward": reward, "gap": best - reward, "outside": outside}

    def curve(self) -> tuple[list[float], list[float]]:
        """The frontier."""
        betas = [math.exp(x / 10) for x in range(-30, 31)]
        points = enumeration.frontier(self.log_reference, self.rewards, betas)
        return [kl for kl, _ in points], [reward for _, reward in points]

    def further(self) -> list[dict]:
        """Best-of-n, exactly."""
        rows = []
        for n in (2, 4, 8, 16, 64):
            log_p = enumeration.best_of_n(self.log_reference, self.rewards, n)
            kl, reward = float(enumeration.kl_divergence(log_p, self.log_reference)), float(log_p.exp() @ self.rewards)
            gap = enumeration.best_reward_at(self.log_reference, self.rewards, kl) - reward
            rows.append(
                {
                    "method": "best of n",
                    "knob": f"n {n}",
                    "kl": kl,
                    "reward": reward,
                    "gap": gap,
                    "runs": [],
                    "of": "exact",
                }
            )
        return rows


class Shakespeare:
    """Speeches of a small language model, and VADER's sentiment of them."""

    name = "shakespeare"
    question = "How cheerful do speeches become at which KL divergence, by PPO, GRPO, DPO, IPO and the baselines?"
    seeds, precision, reference = (1, 2, 3), "bf16-mixed", "models/sft_shakespeare"
    reward_label, kl_label = "sentiment (VADER compound) of sampled answers", "KL divergence per answer, nats"

    @property
    def points(self) -> list[Point]:
        """PPO by its KL target, the others by beta."""
        drawn = {
            "reward": {"class_path": "lightning_gpt.rewards.Lexicon"},
            "max_new_tokens": 64,
            "epochs": 2,
            "minibatches": 2,
        }
        found = []
        for target in (3.0, 6.0, 12.0):
            kl = {"class_path": ADAPTIVE, "init_args": {"beta": 0.05, "target": target, "horizon": 300}}
            found.append(Point("PPO", f"target {target:g}", "PPO", "PromptData", {"kl": kl, **drawn}, 100, 5e-4, 64))
        for beta in (0.02,):
            found.append(
                Point(
                    "GRPO", f"beta {beta:g}", "GRPO", "PromptData", {"beta": beta, "answers": 8, **drawn}, 80, 5e-4, 8
                )
            )
        for beta in (0.05, 0.1, 1.0):
            loss = {"class_path": LOSSES + "Sigmoid", "init_args": {"beta": beta}}
            found.append(Point("DPO", f"beta {beta:g}", "DPO", "PreferenceData", {"loss": loss}, 120, 5e-4))
        loss = {"class_path": LOSSES + "IPO", "init_args": {"beta": 0.1, "average": False}}
        found.append(Point("IPO", "beta 0.1", "DPO", "PreferenceData", {"loss": loss}, 120, 5e-4))
        for method in ("PreferredOnly", "Unlikelihood"):
            loss = {"class_path": LOSSES + method}
            found.append(Point(method, "", "DPO", "PreferenceData", {"loss": loss}, 120, 5e-4))
        return found

    optimizer = Exact.optimizer

    def data(self, point: Point) -> dict:
        """Prompts of speeches, or pairs of the reference's answers."""
        source = "data/speeches/train.jsonl" if point.data == "PromptData" else "data/sentiment/train.jsonl"
        return {"train": source, "batch_size": point.batch}

    def prepare(self) -> None:
        """The prompts that nobody has learnt from."""
        rows = [json.loads(line) for line in Path("data/speeches/test.jsonl").read_text().splitlines()]
        self.prompts = [row["prompt"] for row in rows[:512]]
        self.reference_net, self.tokenizer = open_model(self.reference)

    def measure(self, checkpoint: Path) -> dict[str, float]:
        """One answer to each of 512 prompts at temperature 1: reward, and log pi - log ref summed over its tokens."""
        from lightning_gpt.inference import SamplingConfig
        from lightning_gpt.rewards import Lexicon
        from lightning_gpt.tasks.rollout import draw_answers

        net, tokenizer = open_model(checkpoint)
        ids = [tokenizer.encode(prompt)[-32:] for prompt in self.prompts]
        scores, ratios, ends = [], [], []
        for first in range(0, len(ids), 128):
            some = ids[first : first + 128]
            seeds = list(range(first, first + len(some)))
            drawn = draw_answers(net, tokenizer, some, 64, SamplingConfig(), seeds, tokenizer.end_ids)
            with torch.inference_mode():
                both = [
                    token_log_probs(one(drawn.input_ids), drawn.targets).sum(-1) for one in (net, self.reference_net)
                ]
            scores += Lexicon()([""] * len(some), drawn.texts)
            ratios += (both[0] - both[1]).tolist()
            ends += drawn.ended.tolist()
        mean = sum(scores) / len(scores)
        return {"kl": sum(ratios) / len(ratios), "reward": mean, "ended": sum(ends) / len(ends)}

    def curve(self) -> None:
        """Not known."""
        return

    def further(self) -> list[dict]:
        """Best-of-n of the reference, its KL divergence bounded by log n - (n - 1) / n."""
        from lightning_gpt.inference import SamplingConfig
        from lightning_gpt.rewards import Lexicon
        from lightning_gpt.tasks.rollout import draw_answers

        ids = [self.tokenizer.encode(prompt)[-32:] for prompt in self.prompts[:256]]
        scores = []
        for answer in range(16):
            seeds = [answer * 1000 + row for row in range(len(ids))]
            drawn = draw_answers(
                self.reference_net, self.tokenizer, ids, 64, SamplingConfig(), seeds, self.tokenizer.end_ids
            )
            scores.append(Lexicon()([""] * len(ids), drawn.texts))
        table = torch.tensor(scores)
        rows = []
        for n in (1, 2, 4, 8, 16):
            best = table.view(16 // n, n, -1).amax(1).mean().item()
            rows.append(
                {
                    "method": "best of n",
                    "knob": f"n {n}",
                    "kl": math.log(n) - (n - 1) / n,
                    "reward": best,
                    "runs": [],
                    "of": "KL at most",
                }
            )
        return rows


WORLDS = {"exact": Exact, "shakespeare": Shakespeare}
