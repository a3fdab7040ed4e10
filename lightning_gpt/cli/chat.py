"""`lightning-gpt chat`: talk with a model on the terminal, and show it pictures."""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lightning_gpt.cli.generate import DType, resolve_device, resolve_dtype

if TYPE_CHECKING:
    from lightning_gpt.inference.conversation import Conversation

COMMANDS = "/image FILE shows a picture, /reset forgets all, /exit or Ctrl-D ends, Ctrl-C stops an answer"


def chat_command(
    model: str,
    image: list[str] | None = None,
    prompt: list[str] | None = None,
    system: str | None = None,
    chat_template: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: list[str] | None = None,
    dtype: DType = "auto",
    device: str = "auto",
) -> None:
    """Talk with a model: type a message, read its answer as it appears, go on.

    /image FILE adds a picture to the next message, /reset starts anew, /exit or Ctrl-D ends. Without a terminal every
    line of standard input is a message, and answers alone are printed.

    Args:
        model: checkpoint file, run directory (its best checkpoint), model directory, or Hugging Face hub name.
        image: pictures to show with the first message; needs a vision-language model (LLaVA).
        prompt: message to answer, or several in turn, instead of a conversation.
        system: what the conversation begins with: how the model is to behave.
        chat_template: how messages are written: chatml, plain, or a Jinja source; null = the model's own.
        max_new_tokens: longest answer.
        temperature: 0 always the likeliest token; above, more daring.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the smallest set of likeliest tokens that reaches this probability.
        min_p: draw from tokens at least this fraction as likely as the likeliest.
        repetition_penalty: above 1 makes tokens that occurred before less likely.
        seed: same seed, same answers.
        stop: texts that end an answer before they would appear.
        dtype: of the weights; auto = bfloat16 on GPUs, as stored on CPU.
        device: auto, cpu, cuda, cuda:1, ...
    """
    from lightning_gpt.hub.llava_opening import image_token, open_any_model
    from lightning_gpt.inference import SamplingConfig
    from lightning_gpt.inference.conversation import Conversation
    from lightning_gpt.text.chat import ChatTemplate

    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    where = resolve_device(device)
    net, tokenizer, vision = open_any_model(model, resolve_dtype(dtype, where), where)
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer.json: put its tokenizer's file beside config.json")
    if image and vision is None:
        raise ValueError(f"{model} cannot be shown pictures: --image needs a vision-language model (LLaVA)")
    shown = None if vision is None else image_token(vision, tokenizer)
    template = ChatTemplate(tokenizer, chat_template, shown)
    conversation = Conversation(net, template, vision, system, max_new_tokens, sampling, stop or [], seed)
    for file in image or []:
        show(conversation, file)
    talking = prompt is None and sys.stdin.isatty()
    if talking:
        print(COMMANDS, file=sys.stderr)
    for message in prompt if prompt is not None else messages(talking):
        if prompt is None and message.startswith("/"):
            if message.split()[0] in ("/exit", "/quit"):
                return
            attempt(obey, conversation, message, forgiving=talking)
        elif message.strip():
            attempt(answer, conversation, message, forgiving=talking)


def messages(talking: bool) -> Iterator[str]:
    """Lines of the terminal, or of whatever standard input is."""
    if not talking:
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() then edits lines and knows earlier ones)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def attempt(
    action: Callable[["Conversation", str], None], conversation: "Conversation", message: str, forgiving: bool
) -> None:
    """Does it; on a terminal a mistake is told and the conversation goes on."""
    try:
        action(conversation, message)
    except (ValueError, OSError) as error:
        if not forgiving:
            raise
        print(error, file=sys.stderr)


def show(conversation: "Conversation", file: str) -> None:
    """Adds a picture to the next message."""
    from lightning_gpt.data.pictures import open_picture
    from lightning_gpt.nn.pixels import to_pixels

    if conversation.vision is None:
        raise ValueError("this model cannot be shown pictures: use a vision-language model (LLaVA)")
    conversation.show(to_pixels([open_picture(file)], conversation.vision.tower.preprocess))


def obey(conversation: "Conversation", message: str) -> None:
    """/image FILE or /reset."""
    command, _, rest = message.partition(" ")
    if command == "/image" and rest.strip():
        show(conversation, rest.strip())
    elif command == "/reset":
        conversation.reset()
    else:
        raise ValueError(f"{message!r} is no command: {COMMANDS}")


def answer(conversation: "Conversation", message: str) -> None:
    """Prints the answer as it appears; Ctrl-C stops it, and what was said stays in the conversation."""
    pieces = conversation.ask(message)
    try:
        for number, piece in enumerate(pieces):
            if number == 0 and conversation.forgotten:
                print(f"(turns forgotten to make room: {2 * conversation.forgotten})", file=sys.stderr, flush=True)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    finally:
        pieces.close()
    print()
