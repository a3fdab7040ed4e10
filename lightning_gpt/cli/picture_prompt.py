"""A picture on the command line, as what generation reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gpt.nn.vision_language import VisionLanguageModel
    from lightning_gpt.text.tokenizer import Tokenizer


def prompts_with_picture(
    vision: VisionLanguageModel, tokenizer: Tokenizer, prompts: Sequence[str], file: str
) -> tuple[list[list[int]], list[Tensor]]:
    """Ids of prompts and the embeddings to read in their place, all with the same picture.

    Args:
        vision: sees it.
        tokenizer: its tokenizer.
        prompts: texts; <image> stands where the picture is shown, by default before the text.
        file: the picture.

    Raises:
        ValueError: a file that is no picture, or a prompt with several <image>.
    """
    from lightning_gpt.data.pictures import open_picture
    from lightning_gpt.hub.llava_opening import image_token
    from lightning_gpt.nn.pixels import to_pixels
    from lightning_gpt.nn.vision_language import expand_image_tokens
    from lightning_gpt.text.prompts import prompt_ids

    token = image_token(vision, tokenizer)
    for prompt in prompts:
        if prompt.count(token) > 1:
            raise ValueError(f"the prompt has {prompt.count(token)} {token}, but --image is one picture: write one")
    pixels = to_pixels([open_picture(file)], vision.tower.preprocess)
    distinct = list(dict.fromkeys(prompts))
    ids = []
    for prompt in distinct:
        text = prompt if token in prompt else f"{token}\n{prompt}"
        one = prompt_ids(tokenizer, text, vision.net.config.vocab_size, token)
        ids.append(expand_image_tokens(one, vision.image_token_id, vision.tower.tokens))
    embeds = vision.prompt_embeds(ids, [pixels] * len(ids))
    places = [distinct.index(prompt) for prompt in prompts]
    return [ids[place] for place in places], [embeds[place] for place in places]
