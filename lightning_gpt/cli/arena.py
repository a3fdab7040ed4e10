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
    device: str = "auto",
) -> None:
    """Rate models against each other: win rates, win rates with length held equal, Bradley-Terry, Elo.

    Every pair meets over every prompt; a judge sees both orders. Intervals are 95%.

    Args:
        models: two or more model directories, runs, checkpoints or hub names.
        prompts: .jsonl, .json or .parquet file with rows that have a prompt: a text or messages.
        judge: lexicon, a reward model, a model directory, or http://host/v1#model.
        max_new_tokens: longest answer.
        temperature: of drawing; 0 = the likeliest answer.
        limit: use only the first so many prompts.
        batch_size: prompts side by side.
        seed: same seed, same answers.
        grade: also grade each answer alone (MT-Bench style: 1 to 10 from models, the reward itself from rewards).
        out: JSON file for everything: answers, battles, standings.
        device: auto, cpu, cuda, ...
    """
    given = dict(locals())
    import json
    import os
    from dataclasses import asdict
    from pathlib import Path

    from lightning_gpt.cli.command_line import command_line
    from lightning_gpt.cli.generate import resolve_device
    from lightning_gpt.data.row_files import read_rows
    from lightning_gpt.evaluation.arena import answers_of, as_lines, fight, grades, standings
    from lightning_gpt.hub import open_model
    from lightning_gpt.rewards.judge import open_judge

    if len(models) < 2 or len(set(models)) < len(models):
        raise ValueError(f"models={','.join(models)}: name two or more different models")
    if prompts is None:
        raise ValueError("--prompts is not given: name a file with rows that have a prompt")
    asked = []
    for place, row in read_rows(prompts, limit):
        if not row.get("prompt"):
            raise ValueError(f"{place} has no prompt")
        asked.append(row["prompt"])
    if not asked:
        raise ValueError(f"prompts={prompts} has no rows")
    where = resolve_device(device)
    opinion = open_judge(judge)
    answers = {}
    for model in models:
        net, tokenizer = open_model(model, device=where)
        if tokenizer is None:
            raise ValueError(f"{model} has no tokenizer.json: put it beside config.json")
        answers[model] = answers_of(net, tokenizer, asked, max_new_tokens, temperature, batch_size, seed, model)
    battles = fight(asked, answers, opinion)
    found = standings(battles, models)
    if grade:
        found["grades"] = grades(asked, answers, opinion)
    print("\n".join(as_lines(found)))
    if out is not None:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"command": command_line("arena", arena_command, given), "judge": judge}
        content = head | found | {"answers": answers, "battles": [asdict(battle) for battle in battles]}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
