"""The optimizers a YAML file can choose: each is a description that `build`s the real one for a network."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_gpt.optim.groups import group, parameter_groups, parameter_kinds, trainable
from lightning_gpt.optim.muon import Muon, Scale
from lightning_gpt.optim.newton_schulz import STEPS, Precision


class OptimizerSpec(ABC):
    """Which optimizer, with which settings; `lightning_gpt.optim.AdamW` and its siblings are the choices."""

    in_backward = False
    """Whether parameters are updated in the backward pass, each when its gradient is complete (in_backward.py)."""

    @abstractmethod
    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters of `module`, each in exactly one group."""


class AdamW(OptimizerSpec):
    """AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101) as GPT-3 and nanoGPT set it.

    Args:
        lr: peak learning rate; the schedule scales it. Smaller for larger networks: 1e-3 at 1M parameters, 6e-4 at
            124M, 3e-4 at 1B.
        betas: decay rates of the running mean of the gradient and of its square. GPT-3's 0.95 forgets a burst of large
            gradients sooner than PyTorch's 0.999; use 0.99 where a batch holds few tokens.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay of matrices; biases and gains never decay.
        decay_embeddings: whether embeddings decay too (GPT-2, GPT-3, nanoGPT: yes).
        fused: one kernel for all parameters of a group instead of one operation after the other.
        in_backward: update each parameter in the backward pass and free its gradient: all gradients are never in memory
            together. Not with accumulation, clipping, 16-mixed or DDP.
    """

    def __init__(
        self,
        lr: float = 6e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        decay_embeddings: bool = True,
        fused: bool = True,
        in_backward: bool = False,
    ) -> None:
        _check_positive(lr=lr, eps=eps)
        _check_not_negative(weight_decay=weight_decay)
        _check_betas("betas", betas)
        self.lr = lr
        self.betas = tuple(betas)
        self.eps = eps
        self.weight_decay = weight_decay
        self.decay_embeddings = decay_embeddings
        self.fused = fused
        self.in_backward = in_backward

    def build(self, module: nn.Module) -> torch.optim.AdamW:
        """`torch.optim.AdamW` with the groups "decay" and "no_decay"."""
        groups = parameter_groups(module, self.weight_decay, decay_embeddings=self.decay_embeddings)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=self.fused)


class AdamW8bit(OptimizerSpec):
    """AdamW with its two moments kept in 8 bits (Dettmers et al., 2022): 2 bytes a parameter instead of 8.

    Embeddings keep 32 bits, as their gradients are too uneven for it. Needs `pip install 'lightning_gpt[quant]'`.

    Args:
        lr: peak learning rate; AdamW's.
        betas: decay rates of the running mean of the gradient and of its square.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay of matrices; biases and gains never decay.
        decay_embeddings: whether embeddings decay too.
        min_8bit_size: parameters with fewer elements keep 32 bits, where 8 would save nothing.
        in_backward: update each parameter in the backward pass and free its gradient: all gradients are never in memory
            together. Not with accumulation, clipping, 16-mixed or DDP.
    """

    def __init__(
        self,
        lr: float = 6e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        decay_embeddings: bool = True,
        min_8bit_size: int = 4096,
        in_backward: bool = False,
    ) -> None:
        _check_positive(lr=lr, eps=eps)
        _check_not_negative(weight_decay=weight_decay, min_8bit_size=min_8bit_size)
        _check_betas("betas", betas)
        self.lr = lr
        self.betas = tuple(betas)
        self.eps = eps
        self.weight_decay = weight_decay
        self.decay_embeddings = decay_embeddings
        self.min_8bit_size = min_8bit_size
        self.in_backward = in_backward

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """bitsandbytes' AdamW8bit with the groups "embeddings" (32 bits), "decay" and "no_decay".

        Raises:
            ModuleNotFoundError: bitsandbytes is not installed.
            ValueError: the parameters are spread over devices.
        """
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            raise ValueError(
                "model.optimizer=AdamW8bit works on whole weights, and trainer.strategy spreads them over devices: "
                "choose lightning_gpt.optim.AdamW, whose states are spread too, or trainer.strategy=ddp"
            )
        from lightning_gpt.optim.adamw8bit import GroupwiseAdamW8bit

        groups = parameter_groups(
            module, self.weight_decay, decay_embeddings=self.decay_embeddings, separate_embeddings=True
        )
        for g in groups:
            g["optim_bits"] = 32 if g["name"] == "embeddings" else 8
        return GroupwiseAdamW8bit(groups, lr=self.lr, betas=self.betas, eps=self.eps, min_8bit_size=self.min_8bit_size)


class MuonAdamW(OptimizerSpec):
    """Muon (Jordan et al., 2024) for the matrices inside the blocks, AdamW for all else, as one optimizer.

    Each AdamW group has its own learning rate, since embeddings and head bear larger ones than norms do.

    Args:
        lr: Muon's peak learning rate. With scale "spectral" it hardly depends on the width: 0.01 to 0.04.
        momentum: Muon's momentum.
        nesterov: look ahead along the momentum.
        weight_decay: Muon's decoupled decay.
        steps: Newton-Schulz iterations.
        scale: "spectral" multiplies an update by sqrt(max(1, out / in)) (Jordan et al.); "rms" by
            0.2 sqrt(max(out, in)), after which AdamW's lr and weight_decay fit Muon too (Liu et al., 2025,
            arXiv:2502.16982).
        precision: type of Muon's products: bf16, fp32, or auto = bf16 except on CPUs that only emulate it.
        compile: torch.compile the Newton-Schulz iteration; pays on GPUs.
        adam_lr: AdamW's peak learning rate for norms, biases and what else is outside the blocks.
        embedding_lr: the same for embeddings, a tied head included; null = adam_lr.
        head_lr: the same for an untied head; null = adam_lr.
        adam_betas: AdamW's decay rates.
        adam_eps: AdamW's epsilon.
        adam_weight_decay: AdamW's decay of embeddings, head and other matrices; biases and gains never decay.
        in_backward: as AdamW's; matrices are then orthogonalised one by one, not those of one shape together, which
            takes less memory and more time. One device only.
    """

    def __init__(
        self,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        steps: int = STEPS,
        scale: Scale = "spectral",
        precision: Precision = "auto",
        compile: bool = False,
        adam_lr: float = 3e-3,
        embedding_lr: float | None = None,
        head_lr: float | None = None,
        adam_betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        adam_weight_decay: float = 0.0,
        in_backward: bool = False,
    ) -> None:
        embedding_lr = adam_lr if embedding_lr is None else embedding_lr
        head_lr = adam_lr if head_lr is None else head_lr
        _check_positive(lr=lr, steps=steps, adam_lr=adam_lr, embedding_lr=embedding_lr, head_lr=head_lr)
        _check_positive(adam_eps=adam_eps)
        _check_not_negative(weight_decay=weight_decay, adam_weight_decay=adam_weight_decay)
        _check_fraction(momentum=momentum)
        _check_betas("adam_betas", adam_betas)
        _check_choice("scale", scale, ("spectral", "rms"))
        _check_choice("precision", precision, ("auto", "bf16", "fp32"))
        self.lr = lr
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.steps = steps
        self.scale = scale
        self.precision = precision
        self.compile = compile
        self.adam_lr = adam_lr
        self.embedding_lr = embedding_lr
        self.head_lr = head_lr
        self.adam_betas = tuple(adam_betas)
        self.adam_eps = adam_eps
        self.adam_weight_decay = adam_weight_decay
        self.in_backward = in_backward

    def build(self, module: nn.Module) -> Muon:
        """`Muon` with a group for each kind of parameter (see groups.py) that the network has.

        Raises:
            ValueError: the network has no matrix inside `blocks`.
        """
        kinds = parameter_kinds(module)
        if not kinds["hidden"]:
            raise ValueError(
                f"{type(module).__name__} has no trainable matrix inside a module list called 'blocks' for Muon; "
                "choose lightning_gpt.optim.AdamW"
            )
        adam_settings: dict[str, Any] = {"algorithm": "adamw", "betas": self.adam_betas, "eps": self.adam_eps}
        groups = [
            group("hidden", kinds["hidden"], algorithm="muon", lr=self.lr, weight_decay=self.weight_decay),
        ]
        for kind, lr, weight_decay in (
            ("embeddings", self.embedding_lr, self.adam_weight_decay),
            ("head", self.head_lr, self.adam_weight_decay),
            ("matrices", self.adam_lr, self.adam_weight_decay),
            ("vectors", self.adam_lr, 0.0),
        ):
            groups.append(group(kind, kinds[kind], lr=lr, weight_decay=weight_decay, **adam_settings))
        return Muon(
            trainable(groups),
            momentum=self.momentum,
            nesterov=self.nesterov,
            steps=self.steps,
            scale=self.scale,
            precision=self.precision,
            compile=self.compile,
        )


class SGD(OptimizerSpec):
    """Stochastic gradient descent with momentum: the baseline that shows what the others are for.

    Args:
        lr: peak learning rate.
        momentum: 0 is plain gradient descent.
        nesterov: look ahead along the momentum; needs a momentum.
        weight_decay: decay of matrices (added to the gradient); biases and gains never decay.
        decay_embeddings: whether embeddings decay too.
        in_backward: update each parameter in the backward pass and free its gradient: all gradients are never in memory
            together. Not with accumulation, clipping, 16-mixed or DDP.
    """

    def __init__(
        self,
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay_embeddings: bool = True,
        in_backward: bool = False,
    ) -> None:
        _check_positive(lr=lr)
        _check_not_negative(weight_decay=weight_decay)
        _check_fraction(momentum=momentum)
        if nesterov and momentum == 0:
            raise ValueError("nesterov is true but momentum is 0; set momentum above 0 or nesterov to false")
        self.lr = lr
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.decay_embeddings = decay_embeddings
        self.in_backward = in_backward

    def build(self, module: nn.Module) -> torch.optim.SGD:
        """`torch.optim.SGD` with the groups "decay" and "no_decay"."""
        groups = parameter_groups(module, self.weight_decay, decay_embeddings=self.decay_embeddings)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; set it above 0")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}; set it to 0 (off) or above")


def _check_fraction(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; set it to at least 0 and below 1")


def _check_betas(name: str, betas: tuple[float, float]) -> None:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"{name} is {betas}; give two numbers of at least 0 and below 1, such as [0.9, 0.95]")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
