"""LLaVA: a language model learns to answer about pictures."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_gpt.data.vision_instruction_data import IMAGE_TOKEN
from lightning_gpt.hub.growth import grown
from lightning_gpt.hub.vision_towers import open_tower
from lightning_gpt.nn import GPT
from lightning_gpt.nn.loss import IGNORE_INDEX
from lightning_gpt.nn.vision_language import Projector, VisionLanguageModel
from lightning_gpt.nn.vision_tower import VisionTower
from lightning_gpt.optim import AdamW, Cosine, OptimizerSpec, ScheduleSpec
from lightning_gpt.tasks.base import CHECKPOINT_KEY
from lightning_gpt.tasks.finetuning import FineTuning
from lightning_gpt.text.special_tokens import with_special_token

YES, NO = "yes", "no"


class LLaVA(FineTuning):
    """Visual instruction tuning on VisionInstructionData (Liu et al., 2023; LLaVA 1.5: Liu et al., 2024).

    Two stages: `learn: projector` aligns the tower's features with the words of a language model that stays as it is;
    `learn: all`, from the first stage's run, teaches it to follow instructions, whole or with `lora`.

    Logs train/loss; val/loss, val/exact_match (the likeliest answer, word by word, is the row's: what greedy decoding
    would say, read off one pass) for all rows and for each kind as val/exact_match_<kind>, beside what always giving
    the kind's commonest training answer would reach, val/majority_<kind>; val/yes_no_f1 with yes for the positive class
    (POPE, Li et al., 2023), of rows whose answer is yes or no; val/caption_r1: how often a picture's own caption is
    likelier than those of the batch's other pictures.

    Args:
        init_from: language model to start from (as FineTuning), or a vision-language model: the first stage's run, or a
            LLaVA directory.
        tower: what sees: efficientnet-lite0, a CLIP directory, run or checkpoint, or a name of open_clip; null =
            init_from's own.
        tower_layer: layer whose features are taken: -2 = second-last, as LLaVA; -1 = last.
        image_size: pixels of a side, for convolutional towers, which take any; null = the tower's own.
        projector: mlp = two layers, as LLaVA 1.5; linear = one.
        learn: projector = it alone (stage 1: align); all = the language model too (stage 2: instruct).
        projector_lr: the projector's learning rate; null = the optimizer's.
        train_tower: let the tower learn too.
        optimizer: what updates the weights.
        schedule: factor on the learning rates by optimizer step.
        caption_rows: captions of the validation that are compared with one another's pictures; 0 = none.
        feature_cache_mb: features of pictures that are kept, up to so many MB, as long as the tower does not learn; it
            then sees each picture once and by itself. 0 = none: pictures go through the tower batch by batch.
    """

    frozen_modules: tuple[str, ...] = ()

    def __init__(
        self,
        init_from: str,
        tower: str | None = None,
        tower_layer: int = -2,
        image_size: int | None = None,
        projector: Literal["mlp", "linear"] = "mlp",
        learn: Literal["projector", "all"] = "all",
        projector_lr: float | None = None,
        train_tower: bool = False,
        optimizer: OptimizerSpec | None = None,
        schedule: ScheduleSpec | None = None,
        caption_rows: int = 16,
        feature_cache_mb: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_from, optimizer or AdamW(lr=1e-3, weight_decay=0.0), schedule or Cosine(), **kwargs)
        if projector_lr is not None and projector_lr <= 0:
            raise ValueError(f"model.projector_lr={projector_lr} must be positive, or null for the optimizer's rate")
        if learn == "projector" and (self.lora is not None or train_tower):
            raise ValueError("model.learn=projector trains nothing else: leave model.lora and model.train_tower out")
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        self.tower_name, self.tower_layer, self.image_size = tower, tower_layer, image_size
        self.projector_kind, self.learn, self.projector_lr = projector, learn, projector_lr
        self.train_tower, self.caption_rows = train_tower, caption_rows
        self.feature_cache_mb = 0 if train_tower else feature_cache_mb
        self._kept: dict[str, Tensor] = {}
        self._kept_bytes = 0
        self._seeing: tuple[VisionLanguageModel, ...] = ()  # not a module: its parts are registered under their names

    def setup(self, stage: str) -> None:
        """Opens language model and tower, gives both a token for pictures, and tells the data."""
        if self.tokenizer is not None:
            return
        super().setup(stage)
        data = self.trainer.datamodule
        if not hasattr(data, "use_tower"):
            raise ValueError(f"data.class_path={type(data).__name__}: LLaVA learns from VisionInstructionData")
        data.use_tower(self.tokenizer, self.tower.tokens, self.tower.preprocess)
        data.known = self._kept

    def open_start(self) -> tuple[GPT, Any]:
        """The language model, grown by <image>, and its tokenizer; keeps tower and projector."""
        from lightning_gpt.hub.llava_opening import is_vision_language, open_llava

        if is_vision_language(self.init_from):
            model, tokenizer = open_llava(self.init_from)
            net, self.tower, self.projector = model.net, model.tower, model.projector
            if self.tower_name is not None:
                raise ValueError(f"model.init_from={self.init_from} has a tower of its own: leave model.tower out")
            if self.train_tower:
                self.tower = VisionTower(
                    self.tower.visual, self.tower.layer, self.tower.config, self.tower.preprocess, True
                )
            return net, tokenizer
        net, tokenizer = super().open_start()
        if self.tower_name is None:
            raise ValueError(
                f"model.init_from={self.init_from} is a language model: name what sees in model.tower, such as "
                "efficientnet-lite0 or a CLIP run"
            )
        self.tower = open_tower(self.tower_name, self.tower_layer, self.image_size, self.train_tower)
        if tokenizer is not None:
            tokenizer = with_special_token(tokenizer, IMAGE_TOKEN)
            net = grown(net, max(tokenizer.vocab_size, net.config.vocab_size))
        self.projector = Projector(self.tower.width, net.config.n_embd, self.projector_kind)
        return net, tokenizer

    def configure_model(self) -> None:
        """As FineTuning; in the first stage the language model stays as it is."""
        if hasattr(self, "net"):
            return
        super().configure_model()
        if self.learn == "projector":
            self.net.requires_grad_(False)
        image_token = self.tokenizer.special_tokens[IMAGE_TOKEN]
        model = VisionLanguageModel(self.net, self.tower, self.projector, image_token)
        model.touch_unused = self.trainer.world_size > 1
        self._seeing = (model,)
        if self.projector.training is False:
            self.projector.train()

    @property
    def seeing(self) -> VisionLanguageModel:
        """All parts together."""
        return self._seeing[0]

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Puts the projector into groups of its own where it has a rate of its own."""
        optimizer = super().build_optimizer()
        if self.projector_lr is None:
            return optimizer
        own = {id(parameter) for parameter in self.projector.parameters()}
        for group in list(optimizer.param_groups):
            theirs = [parameter for parameter in group["params"] if id(parameter) in own]
            if not theirs:
                continue
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
            group.pop("param_names", None)  # one list for all would no longer be right
            rest = {key: value for key, value in group.items() if key not in ("params", "name")}
            rate = {"lr": self.projector_lr, "name": f"projector_{group.get('name', '')}"}
            optimizer.param_groups.append({**rest, **rate, "params": theirs})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def features(self, batch: dict[str, Any]) -> Tensor | None:
        """(N, P, C) of the batch's pictures in reading order; None without any."""
        if "pictures" not in batch:
            return None
        fresh = batch["pixels"]
        if self.feature_cache_mb:
            # One by one: what is kept must not depend on the pictures beside it, or a resumed run would differ.
            seen = {name: self.tower(pixels[None])[0] for name, pixels in fresh.items() if name not in self._kept}
            for name, features_PD in seen.items():
                self._kept_bytes += features_PD.nbytes
                if self._kept_bytes <= self.feature_cache_mb * 2**20:
                    self._kept[name] = features_PD
        else:
            seen = dict(zip(fresh, self.tower(torch.stack(list(fresh.values()))), strict=True)) if fresh else {}
        features_NPD = torch.stack([self._kept[n] if n in self._kept else seen[n] for n in batch["pictures"]])
        return self.projector(features_NPD)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one micro-batch."""
        features = self.features(batch)
        loss_sum, count = self.seeing.answer_loss(batch["input_ids"], batch["targets"], features_NPC=features)
        self.see(int(batch["num_tokens"]))
        self.book("train/num_tokens", int(batch["num_tokens"]))
        return self.mean_loss(loss_sum, count)

    def on_fit_start(self) -> None:
        """Says what answering without looking would reach."""
        found = self.majority if self.trainer.datamodule.rows("val") else {}
        if found:
            said = ", ".join(f"{kind} {share:.1%}" for kind, share in sorted(found.items()))
            self.announce(f"exact match of always giving the commonest training answer: {said}")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds one batch."""
        if not batch["kinds"]:
            return
        features = self.features(batch)
        targets_BT = batch["targets"]
        hidden = self.seeing.hidden(batch["input_ids"], features_NPC=features)
        rows = []
        for hidden_TC, targets_T in zip(hidden, targets_BT):  # row by row: most of the logits are not needed
            has_T = targets_T != IGNORE_INDEX
            logits = self.net.logits(hidden_TC[has_T]).float()
            loss = torch.nn.functional.cross_entropy(logits, targets_T[has_T], reduction="sum")
            self.add("loss", loss, has_T.sum())
            rows.append(bool((logits.argmax(-1) == targets_T[has_T]).all()))
        majority = self.majority
        for kind, answer, right in zip(batch["kinds"], batch["answers"], rows, strict=True):
            self.add("exact_match", float(right))
            self.add(f"exact_match_{kind}", float(right))
            self.add(f"majority_{kind}", majority.get(kind, 0.0))
            if answer.lower() in (YES, NO):
                said_yes = (answer.lower() == YES) == right
                both, either = said_yes and answer.lower() == YES, said_yes + (answer.lower() == YES)
                self.add("yes_no_f1", 2.0 * both, float(either))
        if features is not None:
            self._collect_captions(batch, features)

    @property
    def majority(self) -> dict[str, float]:
        """As the data's; computed once."""
        if not hasattr(self, "_majority"):
            self._majority = self.trainer.datamodule.majority()
        return self._majority

    def on_validation_epoch_start(self) -> None:
        """Forgets the last pass."""
        super().on_validation_epoch_start()
        self._captions: list[tuple[Tensor, Tensor, Tensor]] = []

    on_test_epoch_start = on_validation_epoch_start

    def _collect_captions(self, batch: dict[str, Any], features: Tensor) -> None:
        """Keeps the first caption rows with one picture: ids (T,), targets (T,), features (P, C)."""
        holds_B = (batch["input_ids"] == self.seeing.image_token_id).any(1).tolist()
        if len(features) != sum(holds_B):
            return
        picture = -1
        for row, (kind, holds) in enumerate(zip(batch["kinds"], holds_B)):
            picture += holds
            if kind == "caption" and holds and len(self._captions) < self.caption_rows:
                self._captions.append((batch["input_ids"][row], batch["targets"][row], features[picture]))

    def evaluated(self) -> dict[str, float]:
        """With the captions compared."""
        if len(self._captions) > 1:
            right = [self._own_is_likeliest(number) for number in range(len(self._captions))]
            self.add("caption_r1", float(sum(right)), len(right))
        return super().evaluated()

    def _own_is_likeliest(self, number: int) -> bool:
        """Whether, of all collected captions, a picture's own is the likeliest."""
        longest = max(len(ids) for ids, _, _ in self._captions)
        ids, targets = (
            torch.stack(
                [
                    torch.nn.functional.pad(one[part], (0, longest - len(one[part])), value=fill)
                    for one in self._captions
                ]
            )
            for part, fill in ((0, 0), (1, IGNORE_INDEX))
        )
        seen = self._captions[number][2].expand(len(ids), -1, -1)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled="bf16" in str(self.trainer.precision)):
            hidden = self.seeing.hidden(ids, features_NPC=seen)
            has = targets != IGNORE_INDEX
            logits = self.net.logits(hidden[has]).float()
        losses = torch.zeros_like(targets, dtype=torch.float32)
        losses[has] = torch.nn.functional.cross_entropy(logits, targets[has], reduction="none")
        return int(losses.sum(1).argmin()) == number

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the parts are; a language model that does not learn is left out and named."""
        super().on_save_checkpoint(checkpoint)
        about = checkpoint[CHECKPOINT_KEY]
        about["llava"] = {
            "tower": self.tower.config,
            "layer": self.tower.layer,
            "preprocess": self.tower.preprocess,
            "projector": self.projector.kind,
            "image_token_id": self.seeing.image_token_id,
        }
        if self.learn == "projector":
            about |= self.about_base()
            state = checkpoint["state_dict"]
            for name in [name for name in state if name.startswith("net.")]:
                del state[name]
