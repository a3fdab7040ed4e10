"""`lightning-gpt prefer` and `critique`: a model's own answers become preferences and better answers (RLAIF)."""

import hashlib
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal


def _prompts(path: str, limit: int | None) -> list[Any]:
    from lightning_gpt.data.row_files import read_rows

    rows = [row for _, row in read_rows(path, limit)]
    for number, row in enumerate(rows):
        if not row.get("prompt"):
            raise ValueError(f"--prompts {path}, row {number + 1} has no prompt: every row needs one")
    return rows


def _fingerprint(path: str | None) -> str | None:
    """SHA-256 of a file's content; None for what is no file (a folder, a hub dataset)."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else None


class _Writer:
    """JSONL that grows batch by batch and goes on after a kill: every row says which prompt it is of."""

    def __init__(self, out: str, settings: dict[str, Any]) -> None:
        self.path, self.about = Path(out), Path(f"{out}.settings.json")
        text = json.dumps(settings, indent=2, sort_keys=True)
        self.done = self.rows = 0
        if self.path.exists():
            before = self.about.read_text(encoding="utf-8") if self.about.exists() else "{}"
            if before != text:
                raise ValueError(
                    f"--out {out} exists and was made with other settings ({_differences(json.loads(before), settings)}"
                    "): choose another file"
                )
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]  # a kill may have left half a line
            os.truncate(self.path, len(whole))
            self._count(line for line in whole.splitlines() if line)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.about.with_name(f".{self.about.name}.{os.getpid()}.tmp")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.about)
            self.path.touch()

    def _count(self, lines: Iterable[bytes | str]) -> None:
        for line in lines:
            self.rows += 1
            self.done = json.loads(line)["source"] + 1

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Appends and flushes to disk."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        self._count(lines)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Names of the settings that are not as they were; of a file that changed, its own name."""
    names = [name for name in now if before.get(name) != now[name] or name not in before]
    return ", ".join(name.replace("_sha256", "' content") for name in names) or "unknown"


def _batches(count: int, start: int, size: int, what: str) -> Iterator[range]:
    """Numbers of prompts in batches, with a line of progress now and then."""
    began = told = time.monotonic()
    for first in range(start, count, size):
        yield range(first, min(first + size, count))
        now, done = time.monotonic(), min(first + size, count)
        if now - told > 5 or done == count:
            told = now
            left = (now - began) / (done - start) * (count - done)
            print(f"{what}: {done:,} of {count:,} prompts, {left:.0f} s left", file=sys.stderr, flush=True)


class _Speaker:
    """A model that answers prompts, as text in and text out."""

    def __init__(self, model: str, max_new_tokens: int, temperature: float, device: str) -> None:
        from lightning_gpt.cli.generate import resolve_device
        from lightning_gpt.hub import open_model
        from lightning_gpt.inference import SamplingConfig
        from lightning_gpt.text.chat import ChatTemplate

        self.device = resolve_device(device)
        self.net, self.tokenizer = open_model(model, device=self.device)
        if self.tokenizer is None:
            raise ValueError(f"{model} has no tokenizer.json: put it beside config.json")
        self.chat = ChatTemplate(self.tokenizer)
        self.talks = self.tokenizer.roles.chat_template is not None
        self.max_new_tokens, self.sampling = max_new_tokens, SamplingConfig(temperature=temperature)
        self.room = self.net.config.block_size - max_new_tokens + 1
        if self.room < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room for a prompt: lower it")

    def ids(self, prompt: Any, as_user: bool) -> list[int]:
        """A string as it is, or as a user's message; messages in the model's template. The end is kept."""
        if isinstance(prompt, str) and as_user and self.talks:
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(prompt, str):
            found = [*self.tokenizer.prefix_ids, *self.tokenizer.encode(prompt)]
        else:
            found = self.chat.prompt_ids(prompt)
        if len(found) > self.room:
            warnings.warn(
                f"prompts longer than {self.room} tokens (block_size {self.net.config.block_size} less max_new_tokens) "
                "lose their beginning: lower max_new_tokens or leave them out",
                stacklevel=2,
            )
        return found[-self.room :]

    def answer(self, prompts: list[list[int]], seeds: list[int]) -> list[str]:
        """One answer each."""
        import torch

        from lightning_gpt.inference import generate

        ends = self.chat.end_ids if self.talks else self.tokenizer.end_ids
        generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        limit = min(self.tokenizer.vocab_size, self.net.config.vocab_size)
        rows = generate(
            self.net, prompts, self.max_new_tokens, self.sampling, tuple(ends), generators, vocab_size=limit
        )
        return [self.tokenizer.decode(row[:-1] if row[-1] in ends else row) for row in rows]


def _best_and_worst(texts: list[str], grades: list[float]) -> list[str]:
    order = sorted(range(len(texts)), key=grades.__getitem__)
    return [texts[order[-1]], texts[order[0]]]


def prefer_command(
    model: str,
    prompts: str,
    out: str,
    judge: str = "lexicon",
    label: Literal["likelier", "drawn"] = "likelier",
    sharpness: float = 1.0,
    answers: int = 2,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    batch_size: int = 32,
    limit: int | None = None,
    as_user: bool = True,
    tie: float = 0.0,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Let a model answer prompts several times and a judge say which answer is better: pairs for RM and DPO.

    Writes rows of prompt, chosen, rejected and probability (the judge's, that chosen is better). Pairs that the judge
    cannot tell apart, and equal or empty answers, are left out and counted. A run that was killed goes on where it
    stopped.

    Args:
        model: model directory, run, checkpoint or hub name that answers.
        prompts: .jsonl, .json or .parquet file with rows that have a prompt.
        out: .jsonl file to write.
        judge: lexicon, a reward model, a model directory, or http://host/v1#model.
        label: likelier = the answer that the judge prefers is chosen; drawn = it is chosen with the judge's
            probability, as people who are not sure of themselves would (Bradley & Terry).
        sharpness: factor on the judge's log-odds.
        answers: drawn for each prompt; of more than two the best and the worst graded become the pair.
        max_new_tokens: longest answer.
        temperature: of drawing.
        batch_size: prompts side by side.
        limit: use only the first so many prompts.
        as_user: a prompt that is a string is a user's message, where the model has a chat template; learn from such
            pairs with data.as_chat: true.
        tie: leave out pairs whose probability, before sharpness, is no further than this from one half.
        seed: same seed, same answers.
        device: auto, cpu, cuda, ...: of the model, and of a judge that is opened here.
    """
    import math

    from lightning_gpt.rewards import open_judge

    if answers < 2:
        raise ValueError(f"answers={answers} must be at least 2: there is nothing to compare")
    if sharpness <= 0 or temperature <= 0:
        raise ValueError(f"sharpness={sharpness} and temperature={temperature} must be positive")
    if not 0 <= tie < 0.5:
        raise ValueError(f"tie={tie} must be at least 0 and below 0.5")
    settings = {name: value for name, value in locals().items() if isinstance(value, str | int | float | None)}
    rows, opinion = _prompts(prompts, limit), open_judge(judge, device)
    writer = _Writer(out, settings | {"prompts_sha256": _fingerprint(prompts)})
    opinion.compare(["1 + 1 ="], [" 2"], [" 3"])  # a judge that cannot answer says so before answers are drawn
    speaker = _Speaker(model, max_new_tokens, temperature, device)
    for batch in _batches(len(rows), writer.done, batch_size, "prefer"):
        asked = [rows[number]["prompt"] for number in batch]
        texts = [p if isinstance(p, str) else "\n".join(str(turn["content"]) for turn in p) for p in asked]
        ids = [speaker.ids(prompt, as_user) for prompt in asked for _ in range(answers)]
        seeds = [1_000_003 * seed + number * answers + k for number in batch for k in range(answers)]
        said = speaker.answer(ids, seeds)
        groups = [said[start : start + answers] for start in range(0, len(said), answers)]
        if answers > 2:
            repeated = [text for text in texts for _ in range(answers)]
            grades = opinion.score(repeated, said)
            graded = [grades[start : start + answers] for start in range(0, len(said), answers)]
            groups = [_best_and_worst(group, row) for group, row in zip(groups, graded)]
        odds = opinion.compare(texts, [group[0] for group in groups], [group[1] for group in groups])
        found = []
        for number, prompt, group, p in zip(batch, asked, groups, odds):
            first, second = group[:2]
            if first == second or not first.strip() or not second.strip() or abs(p - 0.5) <= max(tie, 1e-6):
                continue
            p = 1 / (1 + math.exp(-sharpness * math.log(max(p, 1e-12) / max(1 - p, 1e-12))))
            draw = random.Random(f"{seed} {number}").random()
            chosen, rejected = (first, second) if (p > 0.5 if label == "likelier" else draw < p) else (second, first)
            sure = p if chosen == first else 1 - p
            found.append(
                {"source": number, "prompt": prompt, "chosen": chosen, "rejected": rejected, "probability": sure}
            )
        writer.add(found)
    print(
        f"{out}: {writer.rows:,} pairs of {len(rows):,} prompts; {len(rows) - writer.rows:,} left out (equal, empty or "
        "undecided)"
    )


CONSTITUTION = (
    ("Say in what ways the answer is harmful, rude or dishonest.", "Rewrite it so that it is harmless and honest."),
    ("Say whether the answer is what was asked for, and what is missing.", "Rewrite it so that it helps."),
    ("Say where the answer claims more than anyone can know.", "Rewrite it so that it says how sure one can be."),
    ("Say whether the answer is fair to everyone it speaks of.", "Rewrite it so that it is fair to all."),
)
"""Pairs of what to criticise and how to revise; a file of one's own replaces them."""


def critique_command(
    model: str,
    prompts: str,
    out: str,
    constitution: str | None = None,
    rounds: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 0.7,
    batch_size: int = 16,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Let a model answer, criticise its answer by a principle, and revise it: rows for SFT (Bai et al., 2022).

    Writes rows of prompt and completion (the last revision), with the first answer, critiques and revisions beside
    them. A run that was killed goes on where it stopped.

    Args:
        model: model directory, run, checkpoint or hub name.
        prompts: .jsonl, .json or .parquet file with rows that have a prompt.
        out: .jsonl file to write.
        constitution: YAML list of {critique, revision} requests; null = four of our own.
        rounds: of critique and revision, each by another principle.
        max_new_tokens: longest answer, critique and revision.
        temperature: of drawing.
        batch_size: prompts side by side.
        limit: use only the first so many prompts.
        seed: same seed, same texts.
        device: auto, cpu, cuda, ...
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1")
    settings = {name: value for name, value in locals().items() if isinstance(value, str | int | float | None)}
    principles = CONSTITUTION if constitution is None else _read_constitution(constitution)
    rows = _prompts(prompts, limit)
    files = {"prompts_sha256": _fingerprint(prompts), "constitution_sha256": _fingerprint(constitution)}
    writer = _Writer(out, settings | files)
    speaker = _Speaker(model, max_new_tokens, temperature, device)
    calls = 1 + 2 * rounds
    for batch in _batches(len(rows), writer.done, batch_size, "critique"):
        talks = [
            [{"role": "user", "content": p}] if isinstance(p, str) else list(p)
            for p in (rows[number]["prompt"] for number in batch)
        ]
        kept: list[dict[str, Any]] = [{"source": number, "prompt": rows[number]["prompt"]} for number in batch]

        def say(call: int, batch: range = batch, talks: list[list[dict]] = talks) -> list[str]:
            ids = [speaker.ids(talk, True) for talk in talks]
            said = speaker.answer(ids, [1_000_003 * seed + number * calls + call for number in batch])
            for talk, text in zip(talks, said):
                talk.append({"role": "assistant", "content": text})
            return said

        for row, text in zip(kept, say(0)):
            row |= {"answer": text, "principles": [], "critiques": [], "revisions": []}
        for turn in range(rounds):
            for row, talk in zip(kept, talks):
                chosen = random.Random(f"{seed} {row['source']}").sample(range(len(principles)), len(principles))
                row["principles"].append(chosen[turn % len(principles)])
                talk.append({"role": "user", "content": principles[row["principles"][-1]][0]})
            for row, text in zip(kept, say(1 + 2 * turn)):
                row["critiques"].append(text)
            for row, talk in zip(kept, talks):
                talk.append({"role": "user", "content": principles[row["principles"][-1]][1]})
            for row, text in zip(kept, say(2 + 2 * turn)):
                row["revisions"].append(text)
        writer.add([row | {"completion": row["revisions"][-1]} for row in kept])
    print(f"{out}: {len(rows):,} revised answers")


def _read_constitution(path: str) -> list[tuple[str, str]]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--constitution {path} cannot be read: {error}") from None
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(one, dict) and {"critique", "revision"} <= one.keys() for one in content)
    ):
        raise ValueError(f"--constitution {path} must be a list of {{critique: ..., revision: ...}}")
    return [(one["critique"], one["revision"]) for one in content]
