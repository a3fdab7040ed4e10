"""When an optimizer may step inside the backward pass (optim/in_backward.py): nothing may be left to do after it."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from lightning_gpt.optim import InBackward, Muon

SETTING = "model.optimizer.in_backward=true"


def stepping_in_backward(optimizer: Optimizer, trainer: Trainer, one_backward: bool, compiled: bool) -> InBackward:
    """The optimizer, stepping by itself.

    Args:
        optimizer: built for the run.
        trainer: of the run.
        one_backward: whether a step of the task is one backward pass that Lightning calls.
        compiled: whether the loss is compiled.

    Raises:
        ValueError: what the run asks for besides needs all gradients together; names the mend.
    """
    accumulation, clip = trainer.accumulate_grad_batches, trainer.gradient_clip_val
    if accumulation != 1:
        raise ValueError(
            f"{SETTING} with trainer.accumulate_grad_batches={accumulation}: a gradient is used up with its "
            "micro-batch; set it to 1, and model.activation_checkpointing if the larger batch does not fit"
        )
    if clip:
        raise ValueError(
            f"{SETTING} with trainer.gradient_clip_val={clip}: the norm is known when all weights are updated; set "
            "trainer.gradient_clip_val to null"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            f"{SETTING} with trainer.precision={trainer.precision}: the loss scaler looks at all gradients before it "
            "lets a step happen; use bf16-mixed"
        )
    if isinstance(trainer.strategy, DDPStrategy):
        raise ValueError(
            f"{SETTING} with DDP: gradients are averaged after the update; use one device or "
            "trainer.strategy=lightning_gpt.parallel.FullySharded"
        )
    if isinstance(optimizer, Muon) and trainer.world_size > 1:
        raise ValueError(
            f"{SETTING} with MuonAdamW on {trainer.world_size} devices: each matrix would be gathered in the backward "
            "pass; use lightning_gpt.optim.AdamW, or set in_backward to false"
        )
    if not one_backward:
        raise ValueError(f"{SETTING}: this task's step is more than one backward pass; set in_backward to false")
    if compiled:
        rank_zero_warn(
            f"{SETTING} with model.compile=true: compiled losses give all gradients at once: nothing is saved"
        )
    return InBackward(optimizer)
