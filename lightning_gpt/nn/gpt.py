"""The network: embedding, blocks, norm, head. Legend: B batch, T tokens, C width, V vocabulary."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gpt.nn.attention import Pass
from lightning_gpt.nn.attention_paths import Sight, choose_path, make_sight, plain_attention
from lightning_gpt.nn.blocks import build_block, build_norm
from lightning_gpt.nn.cache import KVCache
from lightning_gpt.nn.config import GPTConfig
from lightning_gpt.nn.initialization import initialize
from lightning_gpt.nn.loss import answered, linear_cross_entropy
from lightning_gpt.nn.masks import within_documents
from lightning_gpt.nn.moe import mixtures
from lightning_gpt.nn.paged_cache import PagedStep
from lightning_gpt.nn.positions import RotaryTable, SinusoidalTable, alibi_slopes
from lightning_gpt.nn.quantized_linear import QuantizedLinear


class GPT(nn.Module):
    """A decoder-only transformer language model; GPT-2, LLaMA, Mistral, Gemma 2 and others are settings of it.

    Args:
        config: shape and parts. Weights are drawn from torch's global generator (nn/initialization.py).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(build_block(config, layer) for layer in range(config.n_layer))
        self.final_norm = nn.Identity() if config.norm_place == "post" else build_norm(config)
        self.head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        self.build_tables()
        initialize(self, config)

    def build_tables(self, device: torch.device | str | None = None) -> None:
        """Computes what follows from the configuration alone and is never saved: tables of positions."""
        config = self.config
        with torch.device(device) if device is not None else torch.device(self.token_embedding.weight.device):
            if config.position == "sinusoidal":
                self.position_embedding = SinusoidalTable(config.n_embd, config.block_size)
            elif config.position == "rotary":
                self.rotary = RotaryTable(config.rotary_size, config.block_size, config.rope_theta, config.rope_scaling)
            elif config.position == "alibi":
                self.register_buffer("slopes_H", alibi_slopes(config.n_head), persistent=False)

    def forward(
        self,
        input_ids_BT: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | PagedStep | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V). Arguments as `hidden`."""
        return self.logits(self.hidden(input_ids_BT, positions, cache, document_ids))

    def hidden(
        self,
        input_ids_BT: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | PagedStep | None = None,
        document_ids: Tensor | None = None,
        record: list[Tensor] | None = None,
        embedded_BTC: Tensor | None = None,
    ) -> Tensor:
        """States before the head, (B, T, C).

        Args:
            input_ids_BT: (B, T) int64 token ids.
            positions: (B, T) int64, each token's position in its row; needed only for ragged rows with a cache.
                Default: consecutive, continuing after the cache's longest row.
            cache: filled with these tokens' keys and values; earlier ones are attended to. A PagedStep knows the
                positions itself.
            document_ids: (B, T) int64; a token sees only its own document (packing), and its position counts from
                where that begins. Not together with a cache.
            record: gets every layer's attention weights (B, H, T, S) in order, to look at.
            embedded_BTC: stands in for what token_embedding gives for the ids (nn/vision_language.py puts pictures
                there); embedding_multiplier and positions are applied as to any other. Only the ids' shape counts then.

        Raises:
            ValueError: more tokens than block_size or than the cache holds; a cache with expert choice.
        """
        T, device = input_ids_BT.shape[1], input_ids_BT.device
        if cache is not None and self.config.moe is not None and self.config.moe.routing == "expert_choice":
            raise ValueError(
                "moe.routing=expert_choice cannot generate: each expert chooses among all tokens of a batch, later "
                "ones too, which are not there yet; train with routing=softmax to generate"
            )
        paged = isinstance(cache, PagedStep)
        if paged:
            positions = cache.positions
        start = cache.length if cache is not None and not paged else 0
        if positions is None and start + T > self.config.block_size:
            raise ValueError(
                f"{start + T} tokens exceed block_size={self.config.block_size}: shorten the input "
                "or build the model with a larger block_size"
            )
        where: Tensor | slice = slice(start, start + T) if positions is None else positions
        if cache is not None and not paged:
            cache.reserve(start if positions is None else 0, T if positions is None else int(positions.max()) + 1)

        x = self.token_embedding(input_ids_BT) if embedded_BTC is None else embedded_BTC
        if self.config.embedding_multiplier != 1:
            x = x * self.config.embedding_multiplier
        if self.config.position in ("learned", "sinusoidal"):
            x = x + self.position_embedding.weight[where if document_ids is None else within_documents(document_ids)]
        if self.config.dropout and self.training:
            x = F.dropout(x, self.config.dropout)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else x.dtype
        rotary = self.rotary(where, dtype) if self.config.position == "rotary" else None
        sights = {
            window: self._sight(window, input_ids_BT, where, cache, document_ids, dtype, record)
            for window in (() if paged else set(self.config.windows))
        }
        slopes_H = self.slopes_H if paged and self.config.position == "alibi" else None
        shared = Pass(sights, rotary, cache, where, slopes_H)

        embedding, first_value = x, None
        for layer, block in enumerate(self.blocks):
            x, value = block(x, shared, embedding, first_value)
            if layer == 0 and self.config.value_skip:
                first_value = value
        return self.final_norm(x)

    def _sight(
        self,
        window: int | None,
        input_ids_BT: Tensor,
        where: Tensor | slice,
        cache: KVCache | None,
        document_ids: Tensor | None,
        dtype: torch.dtype,
        record: list[Tensor] | None,
    ) -> Sight:
        """How the layers of one window attend in this pass."""
        config, device, T = self.config, input_ids_BT.device, input_ids_BT.shape[1]
        slopes_H = self.slopes_H if config.position == "alibi" else None
        if window is not None and window >= T and cache is None:
            window = None
        start = where.start if isinstance(where, slice) else None
        plain_causal = start is not None and document_ids is None
        key_positions = torch.arange(T, device=device) if cache is None else cache.key_positions(window, where)
        path = choose_path(
            device,
            dtype,
            queries=T,
            keys=key_positions.shape[-1],
            whole=start == 0,
            dropout=bool(config.dropout) and self.training,
            window=window,
            biased=slopes_H is not None,
            documents=document_ids is not None,
            softcap=config.attention_softcap is not None,
            sinks=config.attention_sinks,
        )
        if record is not None:
            path = partial(plain_attention, record=record)
        wide = dtype if cache is None else torch.promote_types(dtype, cache.dtype)
        if plain_causal and T == 1 and slopes_H is None:
            return make_sight(path, None, None, wide)  # the newest token sees whatever there is
        queries = torch.arange(start, start + T, device=device) if start is not None else where
        return make_sight(path, queries, key_positions, wide, window, slopes_H, document_ids)

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
        return self.cross_entropy(hidden.flatten(0, 1), targets_BT.flatten())

    def answer_loss(
        self,
        input_ids_BT: Tensor,
        targets_BT: Tensor,
        document_ids: Tensor | None = None,
        embedded_BTC: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `loss`, with the head applied to the positions that have a target only: where prompts are not learnt
        from, their logits are most of the head's work. embedded_BTC as in `hidden`."""
        hidden_NC = self.hidden(input_ids_BT, document_ids=document_ids, embedded_BTC=embedded_BTC).flatten(0, 1)
        hidden_NC, targets_N = answered(hidden_NC, targets_BT.flatten())
        return self.cross_entropy(hidden_NC, targets_N)

    def cross_entropy(self, hidden_NC: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """What `loss` makes of the states: see nn/loss.py. Replaced where the head's rows are on many devices."""
        config = self.config
        head = self.head.dequantized() if isinstance(self.head, QuantizedLinear) else self.head.weight
        return linear_cross_entropy(
            hidden_NC, head, targets_N, vocab_size=config.vocab_size, softcap=config.logit_softcap
        )

    def training_loss(
        self, input_ids_BT: Tensor, targets_BT: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `loss`, and what the experts' routers add to the mean loss (their balance and z-losses, all layers)."""
        total, count = self.loss(input_ids_BT, targets_BT, document_ids)
        return total, count, torch.stack([mixture.report.loss for _, mixture in mixtures(self)]).sum()
