"""`lightning-gpt arena`: models answer the same prompts, a judge says who is better."""


def arena_command(
    models: list[str],
    prompts: str | None = None,
    judge: str = "lexicon",
    max_new_tokens: int = 128,
    temperature: float = 0.7,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    grade: bool = False,
    out: str | None = None,
) -> None:
    """Rate models against each other: win rates, win rates with length held equal, Elo, Bradley-Terry.

    Every pair meets over every prompt; a judge sees both orders. Intervals are 95%.

    Args:
        models: two or more model directories, runs or checkpoints.
        prompts: .jsonl, .json or .parquet file with rows that have a prompt.
        judge: lexicon, a reward model, a model directory, or http://host/v1#model.
        max_new_tokens: longest answer.
        temperature: of drawing; 0 = the likeliest answer.
        limit: use only the first so many prompts.
        batch_size: prompts side by side.
        seed: same seed, same answers.
        grade: also grade each answer alone (MT-Bench style: 1 to 10 from models, the reward itself from rewards).
        out: JSON file for everything: answers, battles, standings.
    """
    import json
    import os
    from dataclasses import asdict
    from pathlib import Path

    from lightning_gpt.data.row_files import read_rows
    from lightning_gpt.evaluation.arena import answers_of, fight, standings
    from lightning_gpt.rewards import open_judge

    if len(models) < 2 or len(set(models)) < len(models):
        raise ValueError(f"models={','.join(models)}: name two or more different models")
    if prompts is None:
        raise ValueError("--prompts is not given: name a file with rows that have a prompt")
    asked = []
    for where, row in read_rows(prompts, limit):
        if not row.get("prompt"):
            raise ValueError(f"{where} has no prompt")
        prompt = row["prompt"]
        asked.append(prompt if isinstance(prompt, str) else "\n".join(str(turn["content"]) for turn in prompt))
    opinion = open_judge(judge)
    answers = {m: answers_of(m, asked, max_new_tokens, temperature, batch_size, seed) for m in models}
    battles = fight(asked, answers, opinion)
    found = standings(battles, models)
    width = max(map(len, models))
    print(f"{'model':<{width}}  Bradley-Terry (95% interval)   Elo")
    for row in found["ratings"]:
        interval = f"{row['bradley_terry']:.0f} ({row['low']:.0f} to {row['high']:.0f})"
        print(f"{row['model']:<{width}}  {interval:<28}  {row['elo']:.0f}")
    for pair in found["pairs"]:
        print(
            f"{pair['first']} beats {pair['second']}: {pair['win_rate']:.1%} ({pair['low']:.1%} to {pair['high']:.1%}, "
            f"n={pair['n']:,}); with length held equal {pair['length_controlled']:.1%}"
        )
    if grade:
        found["grades"] = {}
        for model in models:
            grades = opinion.score(asked, answers[model])
            mean = sum(grades) / len(grades)
            spread = (sum((g - mean) ** 2 for g in grades) / max(len(grades) - 1, 1) / len(grades)) ** 0.5
            found["grades"][model] = {"mean": mean, "stderr": spread, "n": len(grades)}
            print(f"{model}: grade {mean:.3f} ± {spread:.3f} (n={len(grades):,})")
    if out is not None:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = found | {"judge": judge, "answers": answers, "battles": [asdict(battle) for battle in battles]}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
