"""The network: embedding, blocks, norm, head. Legend: B batch, T tokens, C width, V vocabulary."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_gpt.nn.attention import IMPLIES_CAUSAL, CausalSelfAttention, causal_mask, choose_path
from lightning_gpt.nn.cache import KVCache
from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.feedforward import build_feed_forward
from lightning_gpt.nn.initialization import initialize
from lightning_gpt.nn.loss import linear_cross_entropy
from lightning_gpt.nn.norms import NORMS
from lightning_gpt.nn.positions import RotaryTable


def build_norm(config: GPTConfig) -> nn.Module:
    """The normalisation that the configuration names."""
    return NORMS[config.norm](config.n_embd, config.norm_eps, config.norm_affine, config.bias)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)) (pre-norm, as GPT-2 and LLaMA)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = CausalSelfAttention(config, layer)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = build_feed_forward(config)
        self.dropout = config.dropout

    def forward(self, x_BTC: Tensor, *shared) -> Tensor:
        """(B, T, C) -> (B, T, C); `shared` is what CausalSelfAttention.forward takes after x."""
        dropout = self.dropout if self.training else 0.0
        branch = self.attention(self.attention_norm(x_BTC), *shared)
        x_BTC = x_BTC + (F.dropout(branch, dropout) if dropout else branch)
        branch = self.feed_forward(self.feed_forward_norm(x_BTC))
        return x_BTC + (F.dropout(branch, dropout) if dropout else branch)


class GPT(nn.Module):
    """A decoder-only transformer language model, GPT-2 and LLaMA among its settings.

    Args:
        config: shape and parts. Weights are drawn from torch's global generator (nn/initialization.py).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        elif config.position == "rotary":
            self.rotary = RotaryTable(config.head_size, config.block_size, config.rope_theta)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = build_norm(config)
        self.head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        self.checkpoint_every = 0
        """Activation checkpointing (Chen et al., 2016): 0 = off, n = every n-th block is recomputed in backward."""
        initialize(self, config)

    def forward(
        self,
        input_ids_BT: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V). Arguments as `hidden`."""
        return self.logits(self.hidden(input_ids_BT, positions, cache, document_ids))

    def hidden(
        self,
        input_ids_BT: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """States before the head, (B, T, C).

        Args:
            input_ids_BT: (B, T) int64 token ids.
            positions: (B, T) int64, each token's position in its row; needed only for ragged rows with a cache.
                Default: consecutive, continuing after the cache's longest row.
            cache: filled with these tokens' keys and values; earlier ones are attended to.
            document_ids: (B, T) int64; a token sees only its own document (packing). Not together with a cache.

        Raises:
            ValueError: more tokens than block_size or than the cache holds.
        """
        _, T = input_ids_BT.shape
        device = input_ids_BT.device
        start = cache.length if cache is not None else 0
        if positions is None and start + T > self.config.block_size:
            raise ValueError(
                f"{start + T} tokens exceed block_size={self.config.block_size}: shorten the input "
                "or build the model with a larger block_size"
            )
        where: Tensor | slice = slice(start, start + T) if positions is None else positions
        if cache is not None:
            cache.reserve(start if positions is None else 0, T if positions is None else int(positions.max()) + 1)
        keys = cache.length if cache is not None else T

        x = self.token_embedding(input_ids_BT)
        if self.config.position == "learned":
            x = x + self.position_embedding.weight[where]
        if self.config.dropout and self.training:
            x = F.dropout(x, self.config.dropout)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else x.dtype
        rotary = self.rotary(where, dtype) if self.config.position == "rotary" else None

        plain_causal = positions is None and document_ids is None
        dropped = bool(self.config.dropout) and self.training
        path = choose_path(device, dtype, T, keys, whole=plain_causal and keys == T, dropout=dropped)
        if path in IMPLIES_CAUSAL or (plain_causal and T == 1):
            mask = None  # implied by the path, or the newest token sees everything
        else:
            queries = positions if positions is not None else torch.arange(start, start + T, device=device)
            wide = dtype if cache is None else torch.promote_types(dtype, cache.dtype)
            mask = causal_mask(queries, keys, wide, document_ids)

        for layer, block in enumerate(self.blocks):
            if self.checkpoint_every and self.training and layer % self.checkpoint_every == 0:
                x = checkpoint(block, x, path, mask, rotary, cache, where, use_reentrant=False)
            else:
                x = block(x, path, mask, rotary, cache, where)
        return self.final_norm(x)

    def logits(self, hidden_BTC: Tensor) -> Tensor:
        """Logits (B, T, V) of states from `hidden`."""
        logits = self.head(hidden_BTC)[..., : self.config.vocab_size]
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def loss(
        self, input_ids_BT: Tensor, targets_BT: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum of the next-token cross-entropies in nats and the number of targets it runs over (-100 is skipped).

        Never holds all logits in float32 at once when the vocabulary is large (nn/loss.py).
        """
        hidden = self.hidden(input_ids_BT, document_ids=document_ids)
        return linear_cross_entropy(
            hidden.flatten(0, 1),
            self.head.weight,
            targets_BT.flatten(),
            vocab_size=self.config.vocab_size,
            softcap=self.config.logit_softcap,
        )
