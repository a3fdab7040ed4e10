"""Muon for hidden matrices and AdamW for everything else, as one `torch.optim.Optimizer`.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by its nearest
orthogonal matrix, so that every direction of a layer learns at the same rate. One optimizer with two kinds of groups
(not two optimizers) keeps Lightning's automatic optimization, its step count and its checkpoints as they are.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.adamw import adamw

from lightning_gpt.optim.newton_schulz import (
    STEPS,
    Precision,
    compiled_newton_schulz,
    newton_schulz_batched,
    product_dtype,
)

Scale = Literal["spectral", "rms"]

_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Elements orthogonalised together: enough to fill any device, and a bound (256 MiB of bf16) on the extra memory.
MAX_STACKED_ELEMENTS = 1 << 27


class Muon(torch.optim.Optimizer):
    """Muon and AdamW in one optimizer; each group says which of the two with `algorithm`.

    Muon, for a matrix W (out, in) with gradient G; a stack (experts, out, in) is so many matrices:

        M <- momentum M + (1 - momentum) G
        U <- (1 - momentum) G + momentum M  if nesterov, else M
        W <- W - lr weight_decay W - lr scale(out, in) NewtonSchulz(U)

    AdamW groups are `torch.optim.AdamW`, through the same fused kernel. Of parameters that are spread over devices
    (DTensor) the updates are gathered, since Newton-Schulz needs whole matrices; each rank does its share of them.

    Args:
        params: groups; each may override any setting below. Muon's take parameters of two or three dimensions.
        lr: learning rate. For Muon with scale "spectral", about 0.02; with "rms", AdamW's.
        algorithm: "muon" or "adamw".
        weight_decay: decoupled: a step shrinks the weight by lr * weight_decay.
        momentum: Muon's momentum.
        nesterov: look ahead along the momentum.
        steps: Newton-Schulz iterations.
        scale: "spectral": sqrt(max(1, out / in)), Jordan's; "rms": 0.2 sqrt(max(out, in)), which gives updates the
            root mean square of AdamW's (Liu et al., 2025, arXiv:2502.16982).
        precision: type of the Newton-Schulz products; "auto" is bf16 except on CPUs that only emulate it.
        compile: torch.compile the iteration; pays on GPUs.
        betas: AdamW's decay rates of the two moments.
        eps: AdamW's epsilon.

    Raises:
        ValueError: an unknown algorithm or scale, or a parameter that Muon cannot take.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        algorithm: Literal["muon", "adamw"] = "muon",
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        steps: int = STEPS,
        scale: Scale = "spectral",
        precision: Precision = "auto",
        compile: bool = False,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "algorithm": algorithm,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "steps": steps,
            "scale": scale,
            "precision": precision,
            "compile": compile,
            "betas": betas,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, after checking that its algorithm can serve its parameters."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["algorithm"] not in ("muon", "adamw"):
            raise ValueError(f"algorithm is {group['algorithm']!r}; choose 'muon' or 'adamw'")
        if group["scale"] not in ("spectral", "rms"):
            raise ValueError(f"scale is {group['scale']!r}; choose 'spectral' or 'rms'")
        if group["algorithm"] == "adamw":
            # PyTorch restores "step" onto the parameter's device, where the fused kernel wants it, if it sees this key.
            group["fused"] = all(p.device.type in _FUSED_DEVICES for p in group["params"])
            return
        for parameter in group["params"]:
            if parameter.ndim not in (2, 3):
                raise ValueError(
                    f"algorithm 'muon' got a parameter of shape {tuple(parameter.shape)}; "
                    "it takes matrices and stacks of matrices: put the others in a group with algorithm 'adamw'"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what `closure`, if given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                update = self._muon_step if group["algorithm"] == "muon" else self._adamw_step
                update(params, group)
        return loss

    def _muon_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        assert all(p.grad.placements == p.placements for p in params if isinstance(p, DTensor))
        # What is done to each element for itself is done to this rank's elements.
        weights, grads = [_local(p) for p in params], [_local(p.grad) for p in params]
        momenta = [_local(self.state[p]["momentum_buffer"]) for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        if group["nesterov"]:
            updates = torch._foreach_mul(grads, 1 - group["momentum"])
            torch._foreach_add_(updates, momenta, alpha=group["momentum"])
        else:
            updates = momenta
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        alike = defaultdict(list)
        for p, weight, update in zip(params, weights, updates):
            layout = (p.device_mesh, p.placements) if isinstance(p, DTensor) else None
            alike[p.shape, p.dtype, p.device, layout].append((p, weight, update))
        for same in alike.values():
            at_once = max(1, MAX_STACKED_ELEMENTS // max(1, same[0][0].numel()))
            for start in range(0, len(same), at_once):
                some_params, some_weights, some_updates = zip(*same[start : start + at_once])
                deltas = _orthogonalize(some_updates, some_params[0], group)
                alpha = -group["lr"] * update_scale(some_params[0].shape, group["scale"])
                torch._foreach_add_(some_weights, deltas, alpha=alpha)

    def _adamw_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                step_device = p.device if group["fused"] else "cpu"
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=step_device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        beta1, beta2 = group["betas"]
        adamw(
            [_local(p) for p in params],
            [_local(p.grad) for p in params],
            [_local(state["exp_avg"]) for state in states],
            [_local(state["exp_avg_sq"]) for state in states],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def update_scale(shape: torch.Size, scale: Scale) -> float:
    """What an orthogonal update of shape (..., out, in) is multiplied with: see `Muon`."""
    rows, cols = shape[-2:]
    if scale == "rms":
        return 0.2 * math.sqrt(max(rows, cols))
    return math.sqrt(max(1.0, rows / cols))


def _local(tensor: Tensor) -> Tensor:
    """This rank's elements, sharing memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _orthogonalize(updates: tuple[Tensor, ...], like: Tensor, group: dict[str, Any]) -> list[Tensor]:
    """Newton-Schulz over updates of one shape (out, in) or (experts, out, in), in one call.

    Args:
        updates: this rank's elements of each.
        like: a parameter of their shape and layout.
        group: Muon's settings.

    Returns:
        this rank's elements of the orthogonal matrices.
    """
    if not isinstance(like, DTensor) or _has_whole_matrices(like):
        stacked = torch.stack(updates)
        orthogonal = _iterate(stacked.reshape(-1, *like.shape[-2:]), group)
        return list(orthogonal.to(like.dtype).reshape(stacked.shape).unbind(0))
    mesh, placements, layout = like.device_mesh, like.placements, {"shape": like.shape, "stride": like.stride()}
    spread = (DTensor.from_local(update, mesh, placements, run_check=False, **layout) for update in updates)
    stacked = torch.stack([update.full_tensor() for update in spread])
    orthogonal = _shared_out(stacked.reshape(-1, *like.shape[-2:]), mesh, group)
    whole = orthogonal.to(like.dtype).reshape(stacked.shape).unbind(0)
    return [distribute_tensor(one, mesh, placements, src_data_rank=None).to_local() for one in whole]


def _has_whole_matrices(parameter: DTensor) -> bool:
    """Whether a rank's elements of a stack are matrices of its own, as of experts that devices share."""
    return parameter.ndim == 3 and all(place.is_replicate() or place.is_shard(0) for place in parameter.placements)


def _iterate(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """Newton-Schulz of (batch, rows, cols)."""
    iterate = compiled_newton_schulz() if group["compile"] else newton_schulz_batched
    return iterate(matrices, group["steps"], product_dtype(matrices.device, group["precision"]))


def _shared_out(matrices: Tensor, mesh: DeviceMesh, group: dict[str, Any]) -> Tensor:
    """As _iterate of matrices that every rank has: each does its share along the mesh's longest side, and all get
    all."""
    side = max(range(mesh.ndim), key=mesh.size)
    ranks, rank = mesh.size(side), mesh.get_local_rank(side)
    each = -(-len(matrices) // ranks)
    mine = matrices[rank * each : (rank + 1) * each]
    done = torch.zeros(each, *matrices.shape[1:], dtype=product_dtype(matrices.device, group["precision"]))
    done = done.to(matrices.device)
    if len(mine):
        done[: len(mine)] = _iterate(mine, group)
    gathered = done.new_empty(ranks * each, *matrices.shape[1:])
    torch.distributed.all_gather_into_tensor(gathered, done, group=mesh.get_group(side))
    return gathered[: len(matrices)]
