"""LLaVA (Liu et al., 2023): pictures as tokens of a language model.

Legend: B rows, T tokens, C width of the language model; N pictures, P patches each, D features each.

A picture stands in a row as P image tokens, put there when the batch is made: shapes are fixed, and positions, masks
and targets are those of any text. Here the features of the pictures take the places of these tokens' embeddings.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_gpt.nn.gpt import GPT
from lightning_gpt.nn.loss import IGNORE_INDEX
from lightning_gpt.nn.vision_tower import VisionTower


def expand_image_tokens(ids: Sequence[int], image_token_id: int, tokens: int) -> list[int]:
    """Ids in which one image token stands for a picture -> ids with `tokens` of them for each."""
    return [own for index in ids for own in [index] * (tokens if index == image_token_id else 1)]


class Projector(nn.Sequential):
    """(..., D) -> (..., C): patch features to the width of the language model.

    Args:
        width: D.
        n_embd: C.
        kind: mlp = linear, GELU, linear (LLaVA 1.5; Liu et al., 2024, section 3.3); linear = one matrix (LLaVA).
    """

    def __init__(self, width: int, n_embd: int, kind: Literal["mlp", "linear"] = "mlp") -> None:
        if kind not in ("mlp", "linear"):
            raise ValueError(f"projector={kind!r} is unknown: use mlp or linear")
        layers = [nn.Linear(width, n_embd)]
        if kind == "mlp":
            layers += [nn.GELU(), nn.Linear(n_embd, n_embd)]
        super().__init__(*layers)
        self.kind = kind
        self.width, self.n_embd = width, n_embd


class VisionLanguageModel(nn.Module):
    """A language model that is shown pictures.

    Args:
        net: the language model.
        tower: gives patch features.
        projector: takes them to the language model's width.
        image_token_id: the token that stands for one patch; never a target.

    Raises:
        ValueError: parts of different widths, or an image token beyond the vocabulary.
    """

    def __init__(self, net: GPT, tower: VisionTower, projector: Projector, image_token_id: int) -> None:
        super().__init__()
        if tower.width != projector.width:
            raise ValueError(
                f"the tower's layer {tower.layer} gives {tower.width} features, the projector takes {projector.width}: "
                "build the projector with width=tower.width, or take another layer"
            )
        if projector.n_embd != net.config.n_embd:
            raise ValueError(f"the projector gives {projector.n_embd} features for n_embd={net.config.n_embd}")
        if not 0 <= image_token_id < net.config.vocab_size:
            raise ValueError(
                f"image_token_id={image_token_id} is outside vocab_size={net.config.vocab_size}: add the token to the "
                "tokenizer and a row to the embedding"
            )
        self.net = net
        self.tower = tower
        self.projector = projector
        self.image_token_id = image_token_id
        self.touch_unused = False
        """Whether batches without pictures give the projector (and a trainable tower) gradients of zero. DDP needs it:
        it waits for every gradient on every rank. It costs no pass through them."""

    def image_features(self, pixels_NCHW: Tensor) -> Tensor:
        """(N, P, C): what stands in a picture's place. Of features of a frozen tower that were kept, it is
        `projector(features_NPD)`."""
        return self.projector(self.tower(pixels_NCHW))

    def embedded(self, input_ids_BT: Tensor, features_NPC: Tensor | None = None) -> Tensor:
        """Token embeddings (B, T, C) with pictures in the places of the image tokens.

        Args:
            input_ids_BT: (B, T) int64, P image tokens for each picture.
            features_NPC: the pictures of the batch in reading order, from `image_features`; None = there are none, and
                neither tower nor projector is used.

        Raises:
            ValueError: the number of image tokens is not N x P.
        """
        embedded_BTC = self.net.token_embedding(input_ids_BT)
        places_BT = input_ids_BT == self.image_token_id
        found = int(places_BT.sum())
        count, tokens = (0, self.tower.tokens) if features_NPC is None else features_NPC.shape[:2]
        if found != count * tokens:
            raise ValueError(
                f"{found} image tokens (id {self.image_token_id}) for {count} pictures, which take {count * tokens}: "
                f"put {tokens} where each picture stands (expand_image_tokens), and do not cut rows within a picture"
            )
        if features_NPC is not None and count:
            return embedded_BTC.masked_scatter(places_BT[..., None], features_NPC.to(embedded_BTC.dtype))
        if self.touch_unused and torch.is_grad_enabled():
            learning = [p for part in (self.projector, self.tower) for p in part.parameters() if p.requires_grad]
            if learning:
                embedded_BTC = embedded_BTC + 0.0 * torch.stack([p.float().sum() for p in learning]).sum()
        return embedded_BTC

    def hidden(
        self,
        input_ids_BT: Tensor,
        pixels_NCHW: Tensor | None = None,
        document_ids: Tensor | None = None,
        features_NPC: Tensor | None = None,
    ) -> Tensor:
        """States before the head, (B, T, C), as GPT.hidden; the pictures as pixels or as features."""
        embedded_BTC = self._seen(input_ids_BT, pixels_NCHW, features_NPC)
        return self.net.hidden(input_ids_BT, document_ids=document_ids, embedded_BTC=embedded_BTC)

    def forward(
        self,
        input_ids_BT: Tensor,
        pixels_NCHW: Tensor | None = None,
        document_ids: Tensor | None = None,
        features_NPC: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V). Arguments as `hidden`."""
        return self.net.logits(self.hidden(input_ids_BT, pixels_NCHW, document_ids, features_NPC))

    def answer_loss(
        self,
        input_ids_BT: Tensor,
        targets_BT: Tensor,
        pixels_NCHW: Tensor | None = None,
        document_ids: Tensor | None = None,
        features_NPC: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sum of cross-entropies in nats and the number of targets, as GPT.answer_loss; image tokens are no targets."""
        targets_BT = targets_BT.masked_fill(targets_BT == self.image_token_id, IGNORE_INDEX)
        embedded_BTC = self._seen(input_ids_BT, pixels_NCHW, features_NPC)
        return self.net.answer_loss(input_ids_BT, targets_BT, document_ids, embedded_BTC)

    def _seen(self, input_ids_BT: Tensor, pixels_NCHW: Tensor | None, features_NPC: Tensor | None) -> Tensor:
        if pixels_NCHW is not None and features_NPC is not None:
            raise ValueError("pictures as pixels and as features: give one of the two")
        if pixels_NCHW is not None and len(pixels_NCHW):
            features_NPC = self.image_features(pixels_NCHW)
        return self.embedded(input_ids_BT, features_NPC)

    @torch.no_grad()
    def prompt_embeds(self, prompts: Sequence[Sequence[int]], pixels: Sequence[Tensor | None]) -> list[Tensor | None]:
        """What `inference.generate` reads in place of the prompts' embeddings.

        Args:
            prompts: ids per row, P image tokens for each of its pictures.
            pixels: the pictures of each row (n, 3, H, W); None = no picture.

        Returns:
            Per row (T, C), or None for rows without pictures.

        Raises:
            ValueError: image tokens and pictures of a row do not match.
        """
        device = self.net.token_embedding.weight.device
        embeds: list[Tensor | None] = []
        for prompt, own in zip(prompts, pixels, strict=True):
            ids_1T = torch.tensor([list(prompt)], device=device)
            seen = self._seen(ids_1T, None if own is None else own.to(device), None)
            embeds.append(None if own is None else seen[0])
        return embeds
