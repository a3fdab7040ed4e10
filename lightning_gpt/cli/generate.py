"""`lightning-gpt generate`: continue prompts with a trained network."""

import sys
from json import dumps
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

DType = Literal["auto", "float32", "bfloat16", "float16"]


def resolve_device(device: str) -> "torch.device":
    """The device that is asked for; "auto" = the GPU where there is one.

    Raises:
        ValueError: this machine or PyTorch build does not have it.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} cannot be used here ({first}): use cpu, or auto") from None
    return torch.device(device)


def resolve_dtype(dtype: str, device: "torch.device") -> "torch.dtype | None":
    """Type of the weights while generating; "auto" = bfloat16 on GPUs that have it, else None, as stored."""
    import torch

    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if dtype == "float16" and device.type == "cpu":
        raise ValueError("dtype=float16 is hundreds of times slower than float32 on a CPU: use bfloat16 or float32")
    return getattr(torch, dtype)


def read_prompts(prompt: list[str] | None, prompt_file: str | None) -> list[str]:
    """Prompts of the command line: given strings, "-" = all of standard input, or one per line of a file.

    Raises:
        ValueError, FileNotFoundError: both or an unreadable or empty file.
    """
    if prompt and prompt_file:
        raise ValueError("--prompt and --prompt_file exclude each other: give one of them")
    if prompt_file is None:
        return [sys.stdin.read() if text == "-" else text for text in prompt or [""]]
    try:
        with open(prompt_file, encoding="utf-8") as file:
            prompts = [line.rstrip("\r\n") for line in file]
    except FileNotFoundError:
        raise FileNotFoundError(f"--prompt_file {prompt_file} does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt_file {prompt_file} is not UTF-8 text ({error.reason})") from None
    if not prompts:
        raise ValueError(f"--prompt_file {prompt_file} is empty: write one prompt per line")
    return prompts


def generate_command(
    model: str,
    prompt: str | list[str] | None = None,
    prompt_file: str | None = None,
    image: str | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: list[str] | str | None = None,
    num_samples: int = 1,
    reward: str | None = None,
    overflow: Literal["slide", "refuse"] = "slide",
    dtype: DType = "auto",
    device: str = "auto",
    draft: str | None = None,
    draft_tokens: int = 8,
    stats: bool = False,
    stream: bool = True,
    json: bool = False,
) -> None:
    """Continue prompts with a checkpoint, run, model directory or hub model.

    Args:
        model: checkpoint file, run directory (its best checkpoint), model directory, or Hugging Face hub name.
        prompt: text to continue, or a list of texts; "-" reads standard input; nothing starts from the beginning.
        prompt_file: file with one prompt per line; all are continued side by side.
        image: picture to show with every prompt, where it has <image>, else before it; needs a vision-language model
            (LLaVA). The context then ends at block_size, as with overflow=refuse.
        max_new_tokens: tokens to add to each prompt.
        temperature: below 1 more careful, above 1 more daring, 0 always the likeliest token.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the smallest set of likeliest tokens that reaches this probability.
        min_p: draw from tokens at least this fraction as likely as the likeliest.
        repetition_penalty: above 1 makes tokens that occurred before less likely.
        seed: same seed, same text; prompt n of several draws from seed + n.
        stop: text (or list of texts) that ends a continuation before it would appear.
        num_samples: continuations of each prompt.
        reward: print only the best of the samples of each prompt: a reward model (outcome or process), lexicon, or a
            model that grades.
        overflow: beyond the model's block_size, slide = forget the older half of the context, refuse = stop at once.
        dtype: of the weights; auto = bfloat16 on GPUs, as stored on CPU.
        device: auto, cpu, cuda, cuda:1, ...
        draft: what guesses ahead, so that a step may give several tokens; a seed gives the same text, sooner or at the
            same speed: ngram = the text itself, early_exit:N = the model's first N layers, else a smaller model with
            the same tokenizer.
        draft_tokens: guessed at once at most; how many are, depends on what they bring.
        stats: report tokens, seconds and what came of the draft on standard error.
        stream: print text as it appears (one prompt, one sample), instead of when it is complete.
        json: print one JSON object per continuation: prompt, text, tokens, finish.
    """
    prompts = read_prompts([prompt] if isinstance(prompt, str) else prompt, prompt_file)
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if reward is not None and num_samples < 2:
        raise ValueError("reward chooses among samples: set num_samples to 2 or more")
    from lightning_gpt.inference import SamplingConfig, generate_text

    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    prompts = [text for text in prompts for _ in range(num_samples)]

    from lightning_gpt.hub.llava_opening import open_any_model

    where = resolve_device(device)
    net, tokenizer, vision = open_any_model(model, resolve_dtype(dtype, where), where)
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer.json: put its tokenizer's file beside config.json")
    stops = [stop] if isinstance(stop, str) else stop or []
    read, embeds, banned = prompts, None, [] if vision is None else [vision.image_token_id]
    if image is not None:
        from lightning_gpt.cli.picture_prompt import prompts_with_picture

        if vision is None:
            raise ValueError(f"{model} cannot be shown pictures: --image needs a vision-language model (LLaVA)")
        read, embeds = prompts_with_picture(vision, tokenizer, prompts, image)
        overflow = "refuse"
        max_new_tokens = min(max_new_tokens, max(net.config.block_size - max(map(len, read)) + 1, 1))
    drafter = None
    if draft is not None:
        from lightning_gpt.hub import open_model
        from lightning_gpt.inference.drafter_choice import open_drafter

        drafter = open_drafter(
            draft,
            net,
            tokenizer,
            draft_tokens,
            len(prompts),
            lambda name: open_model(name, resolve_dtype(dtype, where), where),
        )
    pieces = generate_text(
        net,
        tokenizer,
        read,
        max_new_tokens,
        sampling,
        stops,
        seed,
        overflow,
        embeds,
        banned_ids=banned,
        drafter=drafter,
    )
    if stats:
        from lightning_gpt.cli.draft import with_stats

        pieces = with_stats(pieces, drafter)
    if stream and len(prompts) == 1 and not json:
        sys.stdout.write(prompts[0])
        for piece in pieces:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    texts, last = [""] * len(prompts), {}
    for piece in pieces:
        texts[piece.row] += piece.text
        last[piece.row] = piece
    rows = list(range(len(prompts)))
    if reward is not None:
        from lightning_gpt.rewards import open_judge

        scores = open_judge(reward).score(prompts, texts)
        groups = (rows[start : start + num_samples] for start in range(0, len(rows), num_samples))
        rows = [max(group, key=scores.__getitem__) for group in groups]
    for place, row in enumerate(rows):
        given, text = prompts[row], texts[row]
        if json:
            about = {"prompt": given, "text": text, "tokens": last[row].tokens, "finish": last[row].finish}
            print(dumps(about, ensure_ascii=False))
        else:
            print(f"{'' if place == 0 else chr(10)}--- {place + 1} of {len(rows)} ({last[row].finish}) ---")
            print(given + text)
